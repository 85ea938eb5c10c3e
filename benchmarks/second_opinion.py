"""The same texts at the same concurrency by guidellm, a load generator that others wrote and trust."""

import itertools
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender, LeftOut, program
from benchmarks.model import Model
from benchmarks.traffic import Load

TEXTS = 4000
TIMEOUT_S = 300


def ask(
    contender: Contender, model: Model, load: Load, concurrency: int, seconds: float, folder: Path
) -> dict[str, Any]:
    """Requests a second, percentiles in ms and errors as guidellm saw them. `load` is one of texts.

    Raises LeftOut when guidellm is not installed, or ends without a report.
    """
    guidellm = program("guidellm", "guidellm")
    texts, report = folder / f"{contender.name}.txt", folder / f"{contender.name}.json"
    contents = load.contents(seed=9000, salt=f"second-{contender.name}")
    texts.write_text("\n".join(str(content) for content in itertools.islice(contents, TEXTS)) + "\n")
    target = contender.url.partition("/v1/")[0]
    backend = {
        "kind": "openai_http",
        "target": target,
        "model": contender.model,
        "request_format": "/v1/chat/completions",
        "stream": "false",
        "http2": "false",
        "max_tokens": "50",
        "validate_backend": "false",
    }
    command = [
        *(guidellm, "run", "--disable-console"),
        *("--backend", ",".join(f"{key}={value}" for key, value in backend.items())),
        *("--profile", f"kind=concurrent,streams={concurrency}"),
        *("--constraint", f"kind=max_duration,seconds={seconds}"),
        *("--tokenizer", f"kind=huggingface_auto,model={model.folder}"),
        *("--data", f"kind=text_file,path={texts}"),
        *("--output", f"kind=json,path={report}"),
    ]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if run.returncode or not report.exists():
        raise LeftOut(f"guidellm failed: {' '.join((run.stdout + run.stderr)[-1500:].split())}")
    return read(json.loads(report.read_text()))


def read(report: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a report of guidellm's, in the words used here."""
    (benchmark,) = report["benchmarks"]
    metrics = benchmark["metrics"]
    percentiles = metrics["request_latency"]["successful"]["percentiles"]
    return {
        "tool": f"guidellm {report['metadata']['guidellm_version']}",
        "verdicts_per_s": metrics["requests_per_second"]["successful"]["mean"],
        **{f"{name}_ms": 1000 * percentiles[name] for name in ("p50", "p90", "p99")},
        "errors": metrics["request_totals"]["errored"],
    }
