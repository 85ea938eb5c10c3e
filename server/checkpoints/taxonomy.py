"""A taxonomy.toml: the hazard categories of a model, in the order of its prompt."""

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, TypeAdapter

from server.checkpoints.files import STRICT, check, parse
from server.domain.errors import OperatorError
from server.domain.taxonomy import OPENAI_CATEGORIES, HazardCategory, Taxonomy

CODE = re.compile(r"[^\s,:](?:[^\n,:]{0,62}[^\s,:])?")
SLUG = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")


def _code(text: str) -> str:
    if not CODE.fullmatch(text):
        raise ValueError("must be a code or a name of 1 to 64 characters, without commas")
    return text


def _slug(text: str) -> str:
    if not SLUG.fullmatch(text):
        raise ValueError("must be lower_snake_case")
    return text


def _openai_category(name: str) -> str:
    if name not in OPENAI_CATEGORIES:
        raise ValueError(f"OpenAI has no category {name!r}")
    return name


OpenAICategory = Annotated[str, AfterValidator(_openai_category)]


class _Row(BaseModel):
    model_config = STRICT

    code: Annotated[str, AfterValidator(_code)]
    prompt_name: str
    name: str
    slug: Annotated[str, AfterValidator(_slug)]
    openai: tuple[OpenAICategory, ...] = ()
    openai_with: dict[str, OpenAICategory] = {}
    text_only: bool = False

    def category(self) -> HazardCategory:
        return HazardCategory(**{**dict(self), "openai_with": tuple(self.openai_with.items())})


class _File(BaseModel):
    model_config = STRICT

    category: list[dict[str, Any]]


def _name_of(row: dict[str, Any]) -> str:
    code = row.get("code")
    return code if isinstance(code, str) and CODE.fullmatch(code) else repr(code)


_ROW, _FILE = TypeAdapter(_Row), TypeAdapter(_File)


def load_taxonomy(file: Path) -> Taxonomy:
    """Read a taxonomy.toml. Raises OperatorError."""
    rows = check(_FILE, parse(file), file).category
    # One by one, so that a mistake is reported with its category's code and not with a position in the list.
    categories = tuple(check(_ROW, row, file, f"category {_name_of(row)}: ").category() for row in rows)
    codes = [category.code for category in categories]
    if not codes or len(set(codes)) != len(codes):
        raise OperatorError(f"{file}: needs at least one [[category]], and each code once.")
    for category in categories:
        for code, _ in category.openai_with:
            if code not in codes:
                raise OperatorError(
                    f"{file}: category {category.code}: openai_with: {code!r} is not a category of this file."
                )
    return Taxonomy(categories)
