"""The last layer computes only what is read of it: the last position of each request.

Why: every layer needs keys and values of all positions, for those that come after them. But what the last layer makes
    of a position is read only where the next token is sampled. Attention and what follows it are computed there and
    nowhere else, which spares the larger part of one layer: 5.1 instead of 6.8 ms a verdict in the engine alone.
    Probabilities of a prompt's own tokens would need all positions, and this server never asks for them.
Where: this server's engine on CPUs; Llama 4. Where vLLM compiles the model, as it does on GPUs, the layer stays whole.
Upstream: none known in vLLM; sgl-project/sglang#38153 (open) is the same for Llama in SGLang.
Needed: tests/engine/test_spared_work.py::test_the_last_layer_computes_a_fraction_and_the_others_all
Until: vLLM's last layer leaves out the positions that are not read.
"""


def install() -> None:
    """For every Llama 4 that is built from now on in this process."""
    from vllm.model_executor.models import llama4

    from server.backends.vllm.llama4.last_layer import Layer

    llama4.Llama4DecoderLayer = Layer  # ty: ignore[invalid-assignment]
