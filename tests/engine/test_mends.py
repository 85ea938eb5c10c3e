"""Each mend of somebody else's defect has a test that fails when the defect is gone, so that the mend can go too."""

import os
import subprocess
import sys

import pytest
import torch
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.platforms import current_platform

TORCHVISION, TORCHAUDIO = ("torchvision", "_C.so"), ("torchaudio", "lib/_torchaudio.abi3.so")


@pytest.mark.parametrize("companion", [TORCHVISION, TORCHAUDIO], ids=lambda companion: companion[0])
def test_companions_built_for_cuda_still_break_a_cpu_torch(companion):
    module = "server.backends.vllm.mends.torch_companions"
    judge = f"import torch; from {module} import is_broken; print(is_broken(*{companion}))"
    if _without_mends(judge).stdout.strip() == "False":
        pytest.skip("this installation's build belongs to its torch")
    assert _without_mends(f"import {companion[0]}").returncode != 0, "this mend is no longer needed"


def _without_mends(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_companions_do_not_stop_transformers():
    mended = subprocess.run(
        [sys.executable, "-c", "import torchvision, transformers.processing_utils"], capture_output=True, text=True
    )
    assert mended.returncode == 0, mended.stderr


def test_a_copied_tokenizer_is_the_same_and_a_pickled_one_is_not():
    copied = "import copy, pickle, tokenizers; t = tokenizers.Tokenizer(tokenizers.models.BPE()); "
    judge = f"{copied} print(copy.deepcopy(t) is t, pickle.loads(pickle.dumps(t)) is t)"
    mend = "from server.backends.vllm.process import _share_tokenizers; _share_tokenizers()"
    assert _without_mends(judge).stdout.split() == ["False", "False"], "this mend is no longer needed"
    assert _without_mends(f"{mend}\n{judge}").stdout.split() == ["True", "False"]


@pytest.mark.skipif(not current_platform.is_cpu(), reason="the defect is in vLLM's CPU linear layer")
def test_cpu_linear_layer_still_rejects_permuted_patches():
    layer = torch.nn.Linear(588, 64, bias=False)
    layer.weight.requires_grad_(False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
    patches = torch.randn(1, 588, 576).permute(0, 2, 1)
    assert layer.cpu_linear(patches.contiguous(), layer.weight, None).shape == (1, 576, 64)
    with pytest.raises(RuntimeError, match="stride"):
        layer.cpu_linear(patches, layer.weight, None)
