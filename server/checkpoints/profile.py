"""A model's facts, read from a profile.toml: its checkpoint, the tokens that decide, its context, engine arguments.

Profiles are data that operators write too, so reading is strict: an unknown key or a wrong type stops the start with a
message that names the file and the key. docs/models.md explains every key.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import model_config
from server.domain.errors import OperatorError
from server.domain.policy import CODE
from server.domain.taxonomy import OPENAI_CATEGORIES, HazardCategory, Taxonomy

DEFAULT_PROFILE = "llama-guard-4-12b"
SHIPPED = Path(model_config.__file__).parent
"""The folder of the profiles that come with the server, one folder for each model."""

ENGINE_KEYS_OF_THE_PROFILE = {
    "model": "model",
    "tokenizer": "model",
    "revision": "revision",
    "served_model_name": "served_as",
    "max_model_len": "context_tokens",
    "limit_mm_per_prompt": "image_limit",
    "language_model_only": "images",
}
"""Arguments of vLLM that the profile says elsewhere, and the key that says it."""

FASTEST = "fastest"
"""As `engine.dtype`: float32, which is nearest to the checkpoint's scores, or bfloat16 where the CPU is made for it."""

CPU_FACTS = Path("/proc/cpuinfo")

SLUG = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """Ids of the tokens that decide a verdict, and the size of the vocabulary that they belong to."""

    blank_line: int
    safe: int
    unsafe: int
    vocabulary_size: int


@dataclass(frozen=True, slots=True)
class Network:
    """What the arithmetic of memory needs to know of a network.

    `text_linear_parameters` are those of the text decoder's linear layers, which quantisation shrinks;
    `text_other_parameters` its embeddings, output head and norms. `text_linear_bytes` is set when the checkpoint itself
    stores the linear layers quantised: their size as stored.
    """

    layers: int
    kv_heads: int
    head_dim: int
    text_linear_parameters: int
    text_other_parameters: int
    vision_parameters: int
    text_linear_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Profile:
    """One model as it is to be served.

    `name` includes the variant ("llama-guard-4-12b:48gb"). `model` is the hub's id, or the path of a local folder, in
    which case `is_local` holds. `served_as` are the names that requests may use; the first stands in replies.
    `stand_in` marks a model that is no moderator. `images` says whether pictures go to the model, `sees_images` whether
    it then knows what is on them. `image_limit` counts the images of one request, 0 when `images` is false. `engine`
    holds keyword arguments of vLLM's AsyncEngineArgs beyond those that follow from the other fields. `network` is None
    where only the checkpoint tells.
    """

    name: str
    description: str
    model: str
    revision: str | None
    served_as: tuple[str, ...]
    stand_in: bool
    runs_on_cpu: bool
    context_tokens: int
    context_beyond_checkpoint: bool
    images: bool
    sees_images: bool
    image_limit: int
    taxonomy: Taxonomy
    chat_template: str
    tokens: AnswerTokens
    network: Network | None
    engine: Mapping[str, Any]

    @property
    def is_local(self) -> bool:
        return Path(self.model).is_absolute()


def load_profile(spec: str) -> Profile:
    """Read the profile that `spec` names.

    `spec` is a name in model_config/, or the path of a profile.toml or of its folder (a path contains a slash), with
    any number of variants behind it: "llama-guard-4-12b", "llama-guard-4-12b:24gb:text-only", "./mine:small". Raises
    OperatorError when there is no such profile or variant, or when a file says what it may not say.
    """
    file, variants = _locate(spec)
    return _profile(_resolve(file, variants), file)


def variant_specs(spec: str) -> tuple[str, ...]:
    """Specs of all variants of the profile that `spec` names, in the file's order of preference, or the profile itself.

    Raises OperatorError like `load_profile`.
    """
    file, _ = _locate(spec)
    variants = _tables_of_variants(_parse(file), file)
    base = file.parent.name if file.parent.parent == SHIPPED else str(file)
    return tuple(f"{base}:{variant}" for variant in variants) or (base,)


def load_taxonomy(file: Path) -> Taxonomy:
    """Read a taxonomy.toml. Raises OperatorError."""
    fields = _Fields(_parse(file), file)
    rows = fields.take("category", list)
    fields.finish()
    categories = tuple(_category(row, file) for row in rows)
    codes = [category.code for category in categories]
    if not codes or len(set(codes)) != len(codes):
        raise OperatorError(f"{file}: needs at least one [[category]], and each code once.")
    for category in categories:
        for code, _ in category.openai_with:
            if code not in codes:
                raise OperatorError(f"{file}: openai_with of {category.code} names {code}, which is no category here.")
    return Taxonomy(categories)


# --- From the spec to one merged table -------------------------------------------------------------------


def _locate(spec: str) -> tuple[Path, list[str]]:
    name, *variants = spec.split(":")
    if "/" not in name:
        file = SHIPPED / name / "profile.toml"
        if not file.is_file():
            known = ", ".join(sorted(path.parent.name for path in SHIPPED.glob("*/profile.toml")))
            raise OperatorError(f"There is no profile {name!r}. Known ones: {known}; or give the path of a folder.")
        return file, variants
    file = Path(name).expanduser().resolve()
    if file.is_dir():
        file /= "profile.toml"
    if not file.is_file():
        raise OperatorError(f"{file}: there is no such file.")
    return file, variants


def _resolve(file: Path, variants: Iterable[str], *, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tables of `file`, those that it extends and its variants as one table, with absolute paths."""
    if file in extended_by:
        raise OperatorError(f"{file}: extends itself.")
    table = _parse(file)
    _Fields(table, file).take("name", str)
    overrides = _tables_of_variants(table, file)
    default = _Fields(table, file).take("default_variant", str, None)
    for key in ("variants", "default_variant"):
        table.pop(key, None)
    if "extends" in table:
        spec = _Fields(table, file).take("extends", str)
        # A path is meant as seen from the file that holds it.
        name, *base_variants = spec.split(":")
        base_file, _ = _locate(str(file.parent / name) if "/" in name else name)
        base = _resolve(base_file, base_variants, extended_by=(*extended_by, file))
        # What names the base does not name this profile.
        del table["extends"]
        base.pop("name", None)
        table = _merge(base, _with_absolute_paths(table, file.parent))
    else:
        table = _with_absolute_paths(table, file.parent)
    descriptions = []
    for variant in variants or ([default] if default else []):
        if variant not in overrides:
            known = ", ".join(overrides) or "none"
            raise OperatorError(f"{file}: there is no variant {variant!r}. Known ones: {known}.")
        table = _merge(table, _with_absolute_paths(overrides[variant], file.parent))
        descriptions.append(overrides[variant].get("description", variant))
        table["name"] = ":".join([str(table["name"]), variant])
    if descriptions:
        table["description"] = ", ".join(map(str, descriptions))
    return table


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OperatorError(f"{file}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise OperatorError(f"{file}: is not valid TOML: {error}.") from error


def _tables_of_variants(table: Mapping[str, Any], file: Path) -> dict[str, dict[str, Any]]:
    variants = _Fields(table, file).take("variants", dict, {})
    fields = _Fields(variants, file, "variants.")
    return {name: fields.take(name, dict) for name in variants}


def _with_absolute_paths(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths are relative to the file that holds them. A model is a path when it starts with a dot or a slash."""
    absolute = dict(table)
    for key in ("taxonomy", "template", "model"):
        value = absolute.get(key)
        if isinstance(value, str) and (key != "model" or value.startswith((".", "/"))):
            absolute[key] = str((folder / value).resolve())
    return absolute


def _merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in override.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


# --- From a table to a profile ---------------------------------------------------------------------------


def _profile(table: Mapping[str, Any], file: Path) -> Profile:
    fields = _Fields(table, file)
    tokens = _Fields(fields.take("tokens", dict), file, "tokens.")
    network = fields.take("network", dict, None)
    engine = dict(fields.take("engine", dict, {}))
    if engine.get("dtype") == FASTEST:
        engine["dtype"] = _fastest_dtype()
    images = fields.take("images", bool, True)
    # A profile that does not say so has a model that sees nothing: a picture that nobody looked at must not be "safe".
    sees_images = fields.take("sees_images", bool, False)
    image_limit = fields.count("image_limit", 0)
    profile = Profile(
        name=fields.take("name", str),
        description=fields.take("description", str, ""),
        model=fields.take("model", str),
        revision=fields.take("revision", str, None),
        served_as=fields.texts("served_as"),
        stand_in=fields.take("stand_in", bool, False),
        runs_on_cpu=fields.take("runs_on_cpu", bool, False),
        context_tokens=fields.count("context_tokens"),
        context_beyond_checkpoint=fields.take("context_beyond_checkpoint", bool, False),
        images=images,
        sees_images=images and sees_images,
        image_limit=image_limit if images else 0,
        taxonomy=load_taxonomy(Path(fields.take("taxonomy", str))),
        chat_template=_read_template(Path(fields.take("template", str))),
        tokens=AnswerTokens(
            blank_line=tokens.count("blank_line"),
            safe=tokens.count("safe"),
            unsafe=tokens.count("unsafe"),
            vocabulary_size=tokens.count("vocabulary_size"),
        ),
        network=None if network is None else _network(network, file),
        engine=MappingProxyType(engine),
    )
    fields.finish()
    tokens.finish()
    for key, own in ENGINE_KEYS_OF_THE_PROFILE.items():
        if key in engine:
            raise OperatorError(f"{file}: engine.{key} is not set here: set {own} instead.")
    if not profile.served_as:
        raise OperatorError(f"{file}: served_as needs at least one name.")
    if profile.stand_in and (taken := _names_of_the_real_model() & {name.casefold() for name in profile.served_as}):
        raise OperatorError(
            f"{file}: a stand-in cannot be served as {', '.join(sorted(taken))}, which is the name of a real model."
            " Name it in GUARD_MODEL_ALIASES: requests may then use that name, and replies still say who judged."
        )
    if images and image_limit == 0:
        raise OperatorError(f"{file}: image_limit must be at least 1 while images is true.")
    if profile.context_tokens == 0:
        raise OperatorError(f"{file}: context_tokens must be at least 1.")
    return profile


def _names_of_the_real_model() -> set[str]:
    file, _ = _locate(DEFAULT_PROFILE)
    return {name.casefold() for name in _Fields(_parse(file), file).texts("served_as")}


def _fastest_dtype() -> str:
    # Every CPU with AMX has these instructions too. Without either, the two were equally fast, and float32 is exact.
    try:
        return "bfloat16" if "avx512_bf16" in CPU_FACTS.read_text().split() else "float32"
    except OSError:
        return "float32"


def _network(table: Mapping[str, Any], file: Path) -> Network:
    fields = _Fields(table, file, "network.")
    network = Network(
        layers=fields.count("layers"),
        kv_heads=fields.count("kv_heads"),
        head_dim=fields.count("head_dim"),
        text_linear_parameters=fields.count("text_linear_parameters"),
        text_other_parameters=fields.count("text_other_parameters"),
        vision_parameters=fields.count("vision_parameters"),
    )
    fields.finish()
    return network


def _read_template(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise OperatorError(f"{file}: cannot be read: {error.strerror}.") from error


def _category(table: Any, file: Path) -> HazardCategory:
    if not isinstance(table, dict):
        raise OperatorError(f"{file}: category must be a list of tables.")
    code = str(table.get("code"))
    if not CODE.fullmatch(code):
        raise OperatorError(f"{file}: code {code!r} must be one of S1 to S14.")
    fields = _Fields(table, file, f"category {code}: ")
    with_table = fields.take("openai_with", dict, {})
    category = HazardCategory(
        code=fields.take("code", str),
        prompt_name=fields.take("prompt_name", str),
        name=fields.take("name", str),
        slug=fields.take("slug", str),
        openai=fields.texts("openai", ()),
        openai_with=tuple((other, str(name)) for other, name in with_table.items()),
        text_only=fields.take("text_only", bool, False),
    )
    fields.finish()
    if not SLUG.fullmatch(category.slug):
        raise OperatorError(f"{file}: category {code}: slug must be lower_snake_case.")
    unknown = {*category.openai, *(name for _, name in category.openai_with)} - OPENAI_CATEGORIES
    if unknown:
        raise OperatorError(f"{file}: category {code}: OpenAI has no category {', '.join(sorted(unknown))}.")
    return category


T = TypeVar("T")
D = TypeVar("D")
_REQUIRED: Any = object()
_KINDS = {str: "a string", bool: "true or false", int: "a whole number", list: "a list", dict: "a table"}


class _Fields:
    """Takes typed values out of a TOML table and knows which were never asked for."""

    def __init__(self, table: Mapping[str, Any], file: Path, prefix: str = "") -> None:
        self._rest = dict(table)
        self._file = file
        self._prefix = prefix

    def take(self, key: str, kind: type[T], default: D = _REQUIRED) -> T | D:
        if key not in self._rest:
            if default is _REQUIRED:
                raise OperatorError(f"{self._file}: {self._prefix}{key} is missing.")
            return default
        value = self._rest.pop(key)
        # type(), as true is an instance of int too.
        if type(value) is not kind:
            raise OperatorError(f"{self._file}: {self._prefix}{key} must be {_KINDS[kind]}, not {value!r}.")
        return value

    def count(self, key: str, default: int = _REQUIRED) -> int:
        number = self.take(key, int, default)
        if number < 0:
            raise OperatorError(f"{self._file}: {self._prefix}{key} must not be negative.")
        return number

    def texts(self, key: str, default: tuple[str, ...] = _REQUIRED) -> tuple[str, ...]:
        values = tuple(self.take(key, list, default))
        if not all(isinstance(value, str) for value in values):
            raise OperatorError(f"{self._file}: {self._prefix}{key} must be a list of strings.")
        return values

    def finish(self) -> None:
        """Raise OperatorError when the table holds a key that nobody took."""
        if self._rest:
            unknown = ", ".join(f"{self._prefix}{key}" for key in self._rest)
            raise OperatorError(f"{self._file}: unknown keys: {unknown}.")
