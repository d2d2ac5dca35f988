"""Plain YAML from a file: no tags, no key twice, every mistake one line with the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kerple_eval.types import UserError


class _UniqueKeys(yaml.SafeLoader):
    """Plain YAML that refuses a key given twice, where YAML libraries keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; UserError where it cannot be read as such."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise UserError(f"{path}: not YAML: {where}") from None
