"""Reading Markdown with formulas: what is code, what is formula, what is neither.

Blanking replaces by spaces, so that every other character keeps its line and column.
"""

import re

DISPLAY = re.compile(r"\$\$(.*?)\$\$", re.DOTALL)
INLINE = re.compile(r"(?<![\\$])\$(?!\$)[^$]*?(?<!\\)\$(?!\$)", re.DOTALL)
FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.DOTALL | re.MULTILINE)
CODE_SPAN = re.compile(r"`[^`\n]+`")


def blank(pattern: re.Pattern[str], text: str) -> str:
    """`text` with every match of `pattern` replaced by spaces; line breaks stay."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def blank_code(text: str) -> str:
    """Without fenced blocks and `spans` of code."""
    return blank(CODE_SPAN, blank(FENCE, text))


def blank_formulas(text: str) -> str:
    """Without $formulas$ and $$displays$$."""
    return blank(INLINE, blank(DISPLAY, text))
