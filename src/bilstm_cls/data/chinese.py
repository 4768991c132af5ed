"""Words of Chinese texts, which have no blanks between them: a mark is put wherever jieba cuts.

jieba is a dictionary in the package rjieba, so a `tokenizer.json` cannot say what it does: it only says that tokens
end at the mark.
"""

import itertools
import re
from typing import Any

from bilstm_cls.errors import ConfigError

CUT = "\x1f"
"""The mark, which is no part of any token."""

_HAN = r"\u3005-\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CUT_WITHOUT_HAN = re.compile(f"(?<![{_HAN}]){CUT}(?![{_HAN}])")


def import_rjieba() -> Any:
    """Returns the package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import rjieba
    except ImportError as error:
        raise ConfigError(
            f"text.tokenizer: 'chinese_words' needs rjieba; run: pip install 'bilstm-cls[chinese]' ({error})"
        ) from error
    return rjieba


def with_cuts(text: str) -> str:
    """Returns the text with a mark wherever jieba cuts before or after a Han character.

    Other scripts, as in `don't` or `3.5%`, are left to the pattern of tokens. A mark that the text itself holds becomes
    a blank, so that every mark is one that was put in.

    Raises:
        ConfigError: rjieba is not installed.
    """
    words = import_rjieba().cut(text.replace(CUT, " "))
    return _CUT_WITHOUT_HAN.sub("", CUT.join(words))


def places_without_cuts(text: str) -> list[int]:
    """Returns where each character of what `with_cuts` gave stands in the text as it was, and the place of its end."""
    return list(itertools.accumulate((character != CUT for character in text), initial=0))
