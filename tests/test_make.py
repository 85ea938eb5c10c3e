"""What `make serve` would do on other machines, and that it installs once."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CHOICES = ("HOST", "PORT", "PROFILE", "EXTRA", "GUARD_PROFILE", "GUARD_BACKEND")
"""What of the environment decides what make does."""

CPU = "requirements/cpu.txt"

BROKEN = "mute the PCI device 0000:01:00.0 is here, but nvidia-smi is not on the PATH"


def install_nvidia_smi(folder: Path, script: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)


@pytest.fixture
def make(tmp_path):
    """Runs make without running its recipes, in a world where only `tools` are installed."""
    tools = tmp_path / "bin"
    tools.mkdir()

    def run(*arguments: str, gpu: str | None = None, found: str = "") -> str:
        if gpu is not None:
            install_nvidia_smi(tools, f"echo '{gpu}'")
        else:
            arguments = (f"FOUND={found}", *arguments)  # whatever the machine has that runs this
        environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
        environment["PATH"] = f"{tools}:/usr/bin:/bin"
        command = ["make", "--no-print-directory", "--dry-run", f"VENV={tmp_path / 'venv'}", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    return run


def install(tmp_path: Path, *stamps: str) -> None:
    """Leave what an earlier run leaves."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    for file in ("bin/python", *stamps):
        (tmp_path / "venv" / file).touch()


def locks(recipe: str) -> list[str]:
    """The files that pip and uv are told to install."""
    return re.findall(r"--requirement (\S+\.txt)", recipe)


def test_a_fresh_machine_without_a_gpu_gets_the_pocket_model(make):
    recipe = make("serve")
    assert locks(recipe) == ["requirements/cpu-torch.txt", "requirements/uv.txt", "requirements/cpu-torch.txt", CPU]
    assert "serve --profile pocket" in recipe
    assert "--host" not in recipe  # 127.0.0.1:8000 is the server's own default


def test_a_gpu_gets_the_real_model_and_is_named(make):
    recipe = make("serve", gpu="NVIDIA L4")
    assert locks(recipe) == ["requirements/cuda.txt"]
    assert "found NVIDIA L4" in recipe
    assert "--profile llama-guard-4-12b " in recipe


def test_overrides(make):
    recipe = make("serve", "PORT=9000", "HOST=0.0.0.0", "PROFILE=llama-guard-4-12b:24gb", gpu="NVIDIA L4")
    assert "--profile llama-guard-4-12b:24gb --host 0.0.0.0 --port 9000" in recipe


def test_a_remote_backend_needs_no_gpu_for_the_real_model(make):
    recipe = make("serve", "GUARD_BACKEND=openrouter")
    assert locks(recipe)[-1:] == [CPU]
    assert "serve --profile llama-guard-4-12b " in recipe


def test_second_start_installs_nothing(make, tmp_path):
    install(tmp_path, ".installed-cpu")
    assert "pip " not in make("serve")


def test_tests_install_their_own_extra_and_then_nothing(make, tmp_path):
    assert locks(make("test"))[-2:] == [CPU, "requirements/cpu-dev.txt"]
    install(tmp_path, ".installed-cpu-dev", ".installed-cpu")
    assert "pip" not in make("test")


def test_benchmarks_install_what_they_need_and_what_the_tests_have_does_for_them(make, tmp_path):
    assert locks(make("bench"))[-2:] == [CPU, "requirements/cpu-bench.txt"]
    install(tmp_path, ".installed-cpu-dev", ".installed-cpu-bench", ".installed-cpu")
    assert "pip" not in make("bench")


def test_benchmarks_take_their_options_from_makes_own(make, tmp_path):
    install(tmp_path, ".installed-cpu-bench", ".installed-cpu")
    recipe = make("bench", "MODEL=small", "MIX=short=70,image1=30", "PREFIX_CACHE=off", "RECORD=1")
    flags = " ".join(recipe.partition("-m benchmarks")[2].split())
    assert flags == "--model 'small' --prefix-cache 'off' --mix 'short=70,image1=30' --record"


@pytest.mark.parametrize(
    ("goals", "gpu"), [(("serve",), None), (("test",), None), (("bench",), None), (("serve",), "NVIDIA L4")]
)
def test_whatever_is_installed_is_hashed_but_the_cpu_build_of_torch(make, goals, gpu):
    installs = re.findall(
        r"(?:pip \S+|uv pip|pip) install (.*?)(?:&&|\|\||;|2>|$)", make(*goals, gpu=gpu), re.MULTILINE
    )
    assert installs
    for install in installs:
        assert "--no-deps" in install, install
        hashed = "--require-hashes --only-binary :all:" in install
        assert hashed is not ("cpu-torch.txt" in install or install.strip().endswith("--editable .")), install
    assert sum("--no-build-isolation --editable ." in install for install in installs) == 1


def test_the_clients_and_the_tools_are_hashed_too(make, tmp_path):
    install(tmp_path, ".installed-cpu-dev", ".installed-cpu")
    for goal in ("test-clients", "bench-gateways", "sbom", "audit", "lock", "check-cuda"):
        folders = [f"{name}={tmp_path / name}" for name in ("CLIENTS", "TOOLS", "CUDA_CHECK")]
        recipe = make(goal, *folders)
        installs = [line for line in recipe.splitlines() if "pip" in line and " install " in line and ".txt" in line]
        assert installs, goal
        assert all("--no-deps --require-hashes --only-binary :all:" in line for line in installs), goal


def test_the_engine_of_production_is_checked_on_the_pythons_that_one_names(make, tmp_path):
    recipe = make("check-cuda", f"CUDA_CHECK={tmp_path / 'cuda'}", "CUDA_PYTHON=python3.12", "PYTHON=python3.11")
    assert "python3.12 -m venv --clear" in recipe
    assert "python3.11" not in recipe
    assert locks(recipe) == ["requirements/cuda.txt", "requirements/cuda-dev.txt"]
    assert "tests/engine/test_fits_vllm.py" in recipe


def test_a_python_without_locks_is_refused(make):
    (line,) = [line for line in make("serve").splitlines() if "version_info" in line]
    assert "3.11, 3.12 or 3.13" in line
    check = re.search(r"-c '(.*)'$", line)
    assert check is not None
    for minor, status in ((10, 1), (11, 0), (13, 0), (14, 1)):
        code = check[1].replace("import sys;", f"import sys; sys.version_info = (3, {minor});")
        assert subprocess.run(["python3", "-c", code], capture_output=True).returncode == status, minor


# --- A card whose driver does not answer -----------------------------------------------------------------


@pytest.mark.parametrize("goals", [(), ("serve",), ("test", "serve")])
def test_a_card_without_a_driver_stops_the_start_before_anything_is_installed(make, goals):
    with pytest.raises(subprocess.CalledProcessError) as stopped:
        make(*goals, found=BROKEN)
    assert stopped.value.stdout == ""
    assert "the PCI device 0000:01:00.0 is here, but nvidia-smi is not on the PATH" in stopped.value.stderr
    assert "make serve EXTRA=cpu" in stopped.value.stderr
    assert "a stand-in, not a moderator" in stopped.value.stderr


def test_whoever_chooses_the_cpu_serves_pocket_beside_a_broken_card(make):
    assert "serve --profile pocket" in make("serve", "EXTRA=cpu", found=BROKEN)


def test_whoever_chooses_the_card_meets_the_servers_own_check(make):
    assert "serve --profile llama-guard-4-12b " in make("serve", "EXTRA=cuda", found=BROKEN)


def test_a_remote_backend_needs_no_driver(make):
    assert "serve --profile llama-guard-4-12b " in make("serve", "GUARD_BACKEND=openrouter", found=BROKEN)


@pytest.mark.parametrize("goal", ["test", "lint", "doctor", "clean"])
def test_what_serves_nobody_goes_on_beside_a_broken_card(make, goal):
    make(goal, found=BROKEN)


def test_make_asks_the_machine_itself(make, tmp_path):
    install_nvidia_smi(tmp_path / "bin", "echo 'NVIDIA-SMI has failed.'; exit 9")
    with pytest.raises(subprocess.CalledProcessError) as stopped:
        subprocess.run(
            ["make", "--dry-run", "serve", f"VENV={tmp_path / 'venv'}"],
            cwd=ROOT,
            env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
    assert "NVIDIA-SMI has failed." in stopped.value.stderr


# --- What is found ---------------------------------------------------------------------------------------

NO_DRIVER = "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9"
NO_DEVICES = "echo 'No devices were found'; exit 6"


@pytest.fixture
def find_gpu(tmp_path):
    """Runs find-gpu.sh on a machine that has `files` and, where `script` is given, a program nvidia-smi."""
    root, tools = tmp_path / "root", tmp_path / "tools"
    tools.mkdir()
    for program in ("cat", "sed", "timeout", "sh", "sleep"):
        (tools / program).symlink_to(
            next(path for path in (Path("/usr/bin", program), Path("/bin", program)) if path.exists())
        )

    def run(script: str | None = None, **files: str) -> str:
        for name, text in files.items():
            file = root / name.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        if script is not None:
            install_nvidia_smi(tools, script)
        command = ["/bin/sh", ROOT / "deploy" / "find-gpu.sh", root]
        return subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, check=True).stdout

    return run


def pci(vendor: str, class_: str, address: str = "slot") -> dict[str, str]:
    folder = f"sys__bus__pci__devices__{address}"
    return {f"{folder}__vendor": f"{vendor}\n", f"{folder}__class": f"{class_}\n"}


TRACES = [
    pci("0x10de", "0x030000"),
    pci("0x10de", "0x030200"),
    {"dev__nvidia0": ""},
    {"proc__driver__nvidia__version": ""},
]
OTHERS = [{}, pci("0x8086", "0x030000"), pci("0x10de", "0x040300"), {"dev__null": ""}]


@pytest.mark.parametrize("files", [*TRACES, *OTHERS])
def test_a_driver_that_answers_names_the_card(find_gpu, files):
    assert find_gpu("echo; echo NVIDIA L4; echo NVIDIA L40S", **files) == "card NVIDIA L4\n"


@pytest.mark.parametrize("files", TRACES)
@pytest.mark.parametrize("script", [None, NO_DRIVER, NO_DEVICES, "exit 127", "true", "echo NVIDIA L4; exit 1"])
def test_a_trace_of_a_card_without_an_answer_is_told(find_gpu, files, script):
    (line,) = find_gpu(script, **files).splitlines()
    assert line.startswith("mute ")
    assert "slot is here" in line or "/nvidia" in line
    assert ("not on the PATH" in line) is (script is None)


@pytest.mark.parametrize("files", OTHERS)
@pytest.mark.parametrize("script", [None, NO_DEVICES])
def test_a_machine_without_a_card_has_nothing_to_tell(find_gpu, files, script):
    assert find_gpu(script, **files) == ""


def test_a_driver_that_does_not_answer_is_itself_a_trace(find_gpu):
    assert find_gpu(NO_DRIVER).startswith("mute nvidia-smi is here, but nvidia-smi fails: NVIDIA-SMI has failed")
