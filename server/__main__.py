"""The command line: `llama-guard-server serve | check | batch | doctor | keys | erase | audit`, or `python -m server`.

vLLM starts its processes by importing this module again, so nothing heavy is imported before a command is known.
"""

import argparse
import logging
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

ERROR = 2

SCRIPT = "llama-guard-server"
"""The console script (pyproject.toml)."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="guard: %(message)s", stream=sys.stderr)
    logging.getLogger("server").setLevel(logging.INFO)
    from server.domain.errors import OperatorError

    try:
        status: int = options.run(options)
        return status
    except OperatorError as error:
        print(f"guard: {error}", file=sys.stderr)  # noqa: T201
    except Exception as error:
        # Any status other than 2 would be read as a verdict. The exception's message may hold content.
        detail = f"{type(error).__name__}: {error}" if options.run is _serve else type(error).__name__
        place = "".join(traceback.format_tb(error.__traceback__))
        print(f"guard: failed with {detail} at\n{place}", file=sys.stderr)  # noqa: T201
    except KeyboardInterrupt:
        print("guard: interrupted", file=sys.stderr)  # noqa: T201
    return ERROR


def _serve(options: argparse.Namespace) -> int:
    from server.commands.serve import serve

    # Needed until uvicorn takes over: the first process of a container ignores signals that it does not handle.
    for stop in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(stop) is not signal.SIG_IGN:
            signal.signal(stop, lambda number, _: sys.exit(128 + number))
    return serve(_settings(profile=options.profile, host=options.host, port=options.port))


def _check(options: argparse.Namespace) -> int:
    from server.commands.check import check

    return check(_settings(profile=options.profile), options)


def _batch(options: argparse.Namespace) -> int:
    from server.commands import batch

    options.action = getattr(batch, options.action)
    return batch.run(options)


def _doctor(options: argparse.Namespace) -> int:
    from server.commands import doctor

    return doctor.run(options.profile, options.gpu_memory, as_json=options.json, settings=_settings())


def _keys(options: argparse.Namespace) -> int:
    from server.commands import keys

    return keys.run(_settings(), options)


def _erase(options: argparse.Namespace) -> int:
    from server.commands import erase

    return erase.run(_settings(), options)


def _audit(options: argparse.Namespace) -> int:
    from server.commands import audit

    return audit.run(_settings(), options)


def _settings(**flags: Any) -> Any:
    """Settings from the environment, overridden by the flags that were given."""
    from pydantic import ValidationError

    from server.domain.errors import OperatorError
    from server.settings import Settings

    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        faults = "; ".join(
            ("GUARD_" + ".".join(map(str, fault["loc"])).upper() + ": " if fault["loc"] else "")
            + fault["msg"].removeprefix("Value error, ")
            for fault in error.errors(include_url=False, include_input=False)
        )
        raise OperatorError(f"The settings are not valid: {faults}") from None


def _at_least_1(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number


def _parser() -> argparse.ArgumentParser:
    program = SCRIPT if Path(sys.argv[0]).stem == SCRIPT else "python -m server"
    parser = argparse.ArgumentParser(prog=program, description="Llama Guard 4 on your own machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve the API")
    serve.add_argument("--profile", help="model profile, such as pocket or llama-guard-4-12b:48gb")
    serve.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default 8000)")
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check", help="judge from the command line: exit status 0 safe, 1 unsafe, 2 error")
    check.add_argument("text", nargs="?", help="the user's message; - reads it from standard input")
    check.add_argument("--image", action="append", default=[], metavar="FILE", help="an image file (repeatable)")
    check.add_argument("--response", help="the assistant's answer, to be judged in place of the text")
    check.add_argument("--file", metavar="FILE", help="judge every row of this .jsonl, .csv, .gz or .parquet file")
    check.add_argument("--out", metavar="FILE", help="write the rows with their verdicts to this file, in its format")
    check.add_argument("--column", metavar="NAME", default="text", help="column of the text (default %(default)s)")
    check.add_argument("--overwrite", action="store_true", help="replace --out, and forget an earlier run")
    check.add_argument("--policy", metavar="FILE", help="JSON object that goes as `policy` with every question")
    check.add_argument("--threshold", type=float, metavar="P", help="unsafe when P(unsafe) is at least this")
    check.add_argument("--exclude", metavar="CODES", help="categories not to ask about, such as S5,S13")
    check.add_argument(
        "--concurrency",
        type=_at_least_1,
        metavar="N",
        default=16,
        help="rows asked about at once (default %(default)s)",
    )
    check.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        default=300.0,
        help="with --file, wait so long for a server that is restarting (default %(default)g)",
    )
    check.add_argument("--url", help="ask the llama-guard-server at this URL instead of starting an engine")
    check.add_argument("--api-key", metavar="KEY", help="key for the server at --url (default: $GUARD_API_KEY)")
    check.add_argument("--profile", help="model profile of the engine that is started")
    check.add_argument("--json", action="store_true", help="print the whole verdict as JSON")
    check.set_defaults(run=_check)

    batch = commands.add_parser("batch", help="have a running server judge a file in the background")
    actions = batch.add_subparsers(required=True, metavar="ACTION")
    submit = actions.add_parser("submit", help="upload a file and print the batch's id")
    submit.add_argument("file", metavar="FILE", help="batch lines in OpenAI's format, or rows as for check --file")
    submit.add_argument("--endpoint", help="endpoint for all lines (default: the one in the lines)")
    submit.add_argument("--wait", action="store_true", help="wait until the batch has ended")
    submit.add_argument("--out", metavar="JSONL", help="wait, and write all answers to this file")
    submit.add_argument(
        "--part-bytes",
        type=_at_least_1,
        metavar="BYTES",
        default=200 * 2**20,
        help="make several batches of a file that is larger than the server accepts (default %(default)s)",
    )
    submit.add_argument("--overwrite", action="store_true", help="replace --out")
    status = actions.add_parser("status", help="show the progress of a batch, or of all batches")
    status.add_argument("id", nargs="?")
    fetch = actions.add_parser("fetch", help="wait for a batch and write all its answers to a file")
    fetch.add_argument("id")
    fetch.add_argument("--out", metavar="JSONL", required=True, help="the file")
    fetch.add_argument("--overwrite", action="store_true", help="replace --out")
    cancel = actions.add_parser("cancel", help="end a batch; lines that are judged keep their results")
    cancel.add_argument("id")
    for name, action in (("submit", submit), ("status", status), ("fetch", fetch), ("cancel", cancel)):
        action.add_argument("--url", default="http://127.0.0.1:8000", help="URL of the server (default %(default)s)")
        action.add_argument("--api-key", help="key for the server, if it needs one (default: $GUARD_API_KEY)")
        action.set_defaults(run=_batch, action=name)

    doctor = commands.add_parser("doctor", help="show which models fit on this machine")
    doctor.add_argument("--profile", help="model profile to check")
    doctor.add_argument("--gpu-memory", type=float, metavar="GIB", help="check for a GPU with this much memory")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)

    keys = commands.add_parser("keys", help="create, list and revoke API keys")
    keys.set_defaults(run=_keys)
    keys_commands = keys.add_subparsers(required=True, dest="keys_command", metavar="COMMAND")
    create = keys_commands.add_parser("create", help="create a key and show it, which is possible only once")
    create.add_argument("name", metavar="NAME", help="name to recognise the key by")
    create.add_argument(
        "--scope",
        action="append",
        choices=("moderate", "batch", "admin"),
        help="a right of the key (repeatable; default: moderate)",
    )
    create.add_argument("--requests-per-minute", type=int, metavar="N", help="limit on requests (default: none)")
    create.add_argument("--tokens-per-minute", type=int, metavar="N", help="limit on tokens (default: none)")
    create.add_argument("--never-remote", action="store_true", help="never send its requests to a remote backend")
    create.add_argument(
        "--finished-prompts",
        action="store_true",
        help="let its finished Guard prompts choose their own categories and the message to judge",
    )
    create.add_argument("--expires", type=int, metavar="DAYS", help="days until the key expires (default: never)")
    listing = keys_commands.add_parser("list", help="list all keys, without their secrets")
    revoke = keys_commands.add_parser("revoke", help="revoke a key; running servers refuse it within seconds")
    revoke.add_argument("id", metavar="ID_OR_PREFIX", help="key_... or lgs_..., as shown by `keys list`")
    for command in (create, listing, revoke):
        command.add_argument("--json", action="store_true", help="print JSON")

    erase = commands.add_parser("erase", help="erase files and batches: those that have expired, or those you name")
    erase.add_argument("--key", metavar="ID_OR_PREFIX", help="erase what belongs to this key, running batches too")
    erase.add_argument("--older-than", type=float, metavar="DAYS", help="erase what is older, whoever it belongs to")
    erase.add_argument("--json", action="store_true", help="print JSON")
    erase.set_defaults(run=_erase)

    audit = commands.add_parser(
        "audit", help="check the audit trail, judge again what it has records of, or drop old ones"
    )
    audit.set_defaults(run=_audit)
    audit_commands = audit.add_subparsers(required=True, dest="audit_command", metavar="COMMAND")
    verify = audit_commands.add_parser(
        "verify",
        help="look for records that were altered, removed or cut off: exit status 0 whole, 1 tampered, 2 error",
    )
    verify.add_argument("place", nargs="?", help="folder of the trail, or `database` (default: GUARD_AUDIT)")
    replay = audit_commands.add_parser(
        "replay", help="judge a file again and show which verdicts differ: exit status 0 none, 1 some, 2 not compared"
    )
    replay.add_argument("file", metavar="FILE", help="JSONL: rows as for check --file, request bodies, or batch lines")
    replay.add_argument("--url", required=True, help="URL of the server that judges again")
    replay.add_argument("--api-key", metavar="KEY", help="key for that server (default: $GUARD_API_KEY)")
    replay.add_argument("--place", help="folder of the trail, or `database` (default: GUARD_AUDIT)")
    drop = audit_commands.add_parser("drop", help="drop what is older, by whole files or groups of rows, and seal that")
    drop.add_argument("--older-than", type=float, required=True, metavar="DAYS", help="age of the records to drop")
    drop.add_argument("--place", help="folder of the trail, or `database` (default: GUARD_AUDIT)")
    for command in (verify, replay):
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
