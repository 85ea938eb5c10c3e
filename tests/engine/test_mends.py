"""Each mend of somebody else's defect has a test that fails when the defect is gone, so that the mend can go too.

They run vLLM without the mends, in processes of their own. Those that need an engine stand in test_bare_vllm.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import vllm
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.platforms import current_platform

from server.backends.vllm import process
from server.backends.vllm.mends.death_with_server import SERVER_PID
from server.checkpoints.profile import load_profile

ON_CPUS = pytest.mark.skipif(not current_platform.is_cpu(), reason="a mend for CPUs")

POCKET = load_profile("pocket")

TORCHVISION, TORCHAUDIO = ("torchvision", "_C.so"), ("torchaudio", "lib/_torchaudio.abi3.so")


def without_mends(code: str, *, companions: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process in which no mend was installed, but for torch's companions where they are broken."""
    ours = {name for name in os.environ if name.startswith("VLLM_")} | {SERVER_PID, "TORCH_COMPILE_DISABLE"}
    environment = {name: value for name, value in os.environ.items() if name not in ours} | {"VLLM_PLUGINS": ""}
    if not companions:
        environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def said(code: str) -> str:
    """The last line that `code` prints without mends."""
    done = without_mends(code)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


# --- The console ----------------------------------------------------------------------------------------------


@ON_CPUS
def test_vllm_still_speaks_before_it_reads_its_level():
    code = "import os; os.environ['VLLM_LOGGING_LEVEL'] = 'ERROR'; import vllm.triton_utils"
    assert "Triton" in without_mends(code, companions=False).stderr, "this mend is no longer needed"


def test_vllm_keeps_to_its_level_from_the_first_word():
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}
    code = "import torch, logging; logging.getLogger('vllm.x').warning('x'); import vllm.triton_utils"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- torch and its companions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("companion", [TORCHVISION, TORCHAUDIO], ids=lambda companion: companion[0])
def test_companions_built_for_cuda_still_break_a_cpu_torch(companion):
    module = "server.backends.vllm.mends.torch_companions"
    judge = f"import torch; from {module} import is_broken; print(is_broken(*{companion}))"
    if without_mends(judge, companions=False).stdout.strip() == "False":
        pytest.skip("this installation's build belongs to its torch")
    assert without_mends(f"import {companion[0]}", companions=False).returncode != 0, "this mend is no longer needed"


def test_companions_do_not_stop_transformers():
    mended = subprocess.run(
        [sys.executable, "-c", "import torchvision, transformers.processing_utils"], capture_output=True, text=True
    )
    assert mended.returncode == 0, mended.stderr


# --- Every process of vLLM ------------------------------------------------------------------------------------


def test_a_copied_tokenizer_is_the_same_and_a_pickled_one_is_not():
    copied = "import copy, pickle, tokenizers; t = tokenizers.Tokenizer(tokenizers.models.BPE()); "
    judge = f"{copied} print(copy.deepcopy(t) is t, pickle.loads(pickle.dumps(t)) is t)"
    mend = "from server.backends.vllm.mends import shared_tokenizers; shared_tokenizers.install()"
    assert said(judge).split() == ["False", "False"]
    assert said(f"{mend}\n{judge}").split() == ["True", "False"]


def test_loading_a_tokenizer_still_copies_it():
    """By transformers, and by vLLM for its threads."""
    judge = f"""
import copy
from tokenizers import Tokenizer
from vllm.tokenizers import get_tokenizer, maybe_make_thread_pool
copies = []
def copied(tokenizer, _):
    copies.append(tokenizer)
    return Tokenizer.from_str(tokenizer.to_str())
copy._deepcopy_dispatch[Tokenizer] = copied
tokenizer = get_tokenizer({POCKET.model!r})
by_transformers = len(copies)
maybe_make_thread_pool(tokenizer)
print(by_transformers, len(copies) - by_transformers)
"""
    by_transformers, by_vllm = map(int, said(judge).split())
    assert by_transformers + by_vllm > 0, "this mend is no longer needed"


TOWER = """
import torch
from types import SimpleNamespace
from vllm.model_executor.models.mllama4 import Llama4UnfoldConvolution
multiplied = []
def linear(patches):
    multiplied.append(patches)
    return patches, None
layer = SimpleNamespace(unfold=torch.nn.Unfold(kernel_size=(14, 14), stride=14), linear=linear)
"""


@ON_CPUS
def test_the_vision_tower_still_multiplies_permuted_patches():
    contiguous = f"{TOWER}Llama4UnfoldConvolution.forward(layer, torch.zeros(1, 3, 336, 336))"
    assert said(f"{contiguous}; print(multiplied[0].is_contiguous())") == "False", "this mend is no longer needed"
    layer: Any = torch.nn.Linear(588, 64, bias=False)  # which vLLM gives a method
    layer.weight.requires_grad_(False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
    patches = torch.randn(1, 588, 576).permute(0, 2, 1)
    assert layer.cpu_linear(patches.contiguous(), layer.weight, None).shape == (1, 576, 64)
    with pytest.raises(RuntimeError, match="stride"):
        layer.cpu_linear(patches, layer.weight, None)


@ON_CPUS
def test_vllm_still_takes_no_bytes_for_llama_4():
    judge = f"""{TOWER}
from vllm.model_executor.models.mllama4 import Llama4ForConditionalGeneration
try:
    Llama4UnfoldConvolution.forward(layer, torch.zeros(1, 3, 336, 336, dtype=torch.uint8))
    taken = "taken"
except (RuntimeError, NotImplementedError):
    taken = "refused"
print(taken, Llama4ForConditionalGeneration.supports_mm_device_do_normalize)
"""
    assert said(judge) == "refused False", "this mend is no longer needed"


# --- The engine on CPUs ---------------------------------------------------------------------------------------


@ON_CPUS
def test_vllm_still_brings_no_allocator_of_its_own():
    """With one, the engine's memory would be out of the reach of what kept_memory.py tells glibc."""
    assert list(Path(vllm.__file__).parent.glob("libs/libtcmalloc*")) == []


# --- The environment of the server ----------------------------------------------------------------------------


def test_a_forked_process_still_runs_no_plugins():
    judge = """
import os
from vllm import envs, plugins
ran = []
plugins.load_plugins_by_group = lambda group: {"one": lambda: ran.append(os.getpid())}
plugins.load_general_plugins()
read, write = os.pipe()
if os.fork() == 0:
    plugins.load_general_plugins()
    os.write(write, str(len(ran)).encode())
    os._exit(0)
os.wait()
print(envs.VLLM_WORKER_MULTIPROC_METHOD, len(ran), os.read(read, 9).decode())
"""
    assert said(judge) == "fork 1 1", "this mend is no longer needed"


def test_vllm_still_puts_its_sockets_where_everybody_can_reach():
    judge = """
import os
import tempfile
from pathlib import Path
from vllm.utils.network_utils import get_open_zmq_ipc_path
print(Path(get_open_zmq_ipc_path().removeprefix("ipc://")).parent == Path(tempfile.gettempdir()))
"""
    assert said(judge) == "True", "this mend is no longer needed"


def test_vllm_still_leaves_its_rendezvous_among_everybodys_files():
    judge = """
import os
import tempfile
os.environ["VLLM_RPC_BASE_PATH"] = "/private"
from vllm.utils import network_utils
among_all = network_utils.get_file_store_init_method().startswith(f"file://{tempfile.gettempdir()}/")
from server.backends.vllm.mends import private_rendezvous
private_rendezvous.install()
print(among_all, network_utils.get_file_store_init_method().startswith("file:///private/"))
"""
    assert said(judge) == "True True", "this mend is no longer needed"


@ON_CPUS
def test_vllm_still_gives_a_model_on_cpus_a_process_of_its_own():
    judge = f"""
from vllm import AsyncEngineArgs
arguments = {{**{dict(POCKET.engine)!r}, "model": {POCKET.model!r}, "max_model_len": 2048}}
print(AsyncEngineArgs(**arguments).create_engine_config().parallel_config.distributed_executor_backend)
"""
    assert said(judge) == "mp", "this mend is no longer needed"


@ON_CPUS
def test_vllm_still_compiles_the_ranking_of_tokens():
    judge = """
from vllm.v1.sample.ops.logprobs import batched_count_greater_than
print(hasattr(batched_count_greater_than, "_torchdynamo_orig_callable"))
"""
    assert said(judge) == "True", "this mend is no longer needed"


def test_vllms_image_caches_still_drift_apart():
    """A rejected request leaves its picture with the server's half of them, which sends it no more."""
    judge = f"""
import os
os.environ["HF_HUB_OFFLINE"] = "1"
from PIL import Image
from vllm import AsyncEngineArgs, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.renderers import renderer_from_config
from vllm.v1.engine.input_processor import InputProcessor

arguments = {{**{dict(POCKET.engine)!r}, "model": {POCKET.model!r}, "max_model_len": 1024}}
config = AsyncEngineArgs(**arguments).create_engine_config()
renderer = renderer_from_config(config)
tokenizer = renderer.tokenizer
image = tokenizer.convert_tokens_to_ids("<|image|>")

def asked(words):
    prompt = {{
        "prompt_token_ids": [1000] * words + [image],
        "multi_modal_data": {{"image": Image.new("RGB", (336, 336))}},
    }}
    (made,) = renderer.render_cmpl([prompt])
    return InputProcessor(config, renderer).process_inputs(
        "", made, SamplingParams(max_tokens=1), supported_tasks=("generate",)
    )

try:
    asked(1000)  # which is too long once its picture is expanded
    print("taken")
except (VLLMValidationError, ValueError):
    print(asked(1).mm_features[0].data is None)
"""
    assert said(judge) == "True", "this mend is no longer needed"


# --- All of them ----------------------------------------------------------------------------------------------


@ON_CPUS
def test_installing_them_twice_is_installing_them_once():
    judge = f"""
import os
os.environ["{SERVER_PID}"] = str(os.getppid())
from server.backends.vllm.mends import torch_companions
from server.backends.vllm.process import of_this_process
from vllm.model_executor.models import llama4, mllama4
from vllm.v1.sample.sampler import Sampler
installed = [*of_this_process(), torch_companions]

def state():
    import copy
    import tokenizers
    from vllm import ir
    copied = tokenizers.Tokenizer(tokenizers.models.BPE())
    return (
        llama4.Llama4DecoderLayer,
        Sampler.gather_specific_token_logprobs,
        sorted(ir.ops.rms_norm.impls),
        copy.deepcopy(copied) is copied,
        mllama4.Llama4UnfoldConvolution.forward.__qualname__,
        os.getpgid(0) == os.getpid(),
    )

states = []
for _ in range(2):
    for mend in installed:
        mend.install()
    states.append(state())
import json
print(json.dumps([len(installed), states[0] == states[1], states[0][2:]]))
"""
    number, same, (providers, shared, forward, grouped) = json.loads(said(judge))
    assert (number, same) == (len(list(process.of_an_engine_on_cpus())) + 7, True)
    assert "guard_cpu" in providers
    assert shared
    assert forward.startswith("install.")
    assert grouped
