"""Over four hundred texts of the kind that breaks programs: odd pieces alone, often, and at every place of a text."""

PIECES = [
    "", " ", "\t", "\n", "\r", "\r\n", "\v", "\f", "\0", "\x01", "\x1b[31m", "\x7f", "\x85", "\xa0",
    "\xad", "\u1680", "\u2000", "\u200b", "\u200c", "\u200d", "\u200f", "\u2028", "\u2029", "\u202e",
    "\u2066", "\u3000", "\ufeff", "\ufffd", "\uffff", "\U0010ffff", "\ud800", "\udfff", "\ude00\ud83d",
    "a", "A", "0", ".", "'", '"', "\\", "<br />", "<pad>", "<unk>", "&amp;", "good", "zzyzx", "é",
    "e\u0301", "ß", "İ", "ﬁ", "Σ", "ǅ", "中", "电影", "ひらがな", "한국어", "مرحبا", "שלום", "ไทย", "हिन्दी", "😀",
    "👩‍👩‍👧", "🇩🇪", "👍🏽", "a\u0300\u0316\u0489", "10,000.5", "-1e400", "don't", "l’amour", "x" * 200,
    "ab" * 5000,
]  # fmt: skip

PLACES = {
    "alone": "{0}",
    "often": "{0}{0}{0}{0}{0}{0}{0}",
    "at the start": "{0} good film",
    "at the end": "bad plot {0}",
    "between": "a {0} b {0} c",
    "inside a word": "go{0}od",
}

ODD_TEXTS = list(dict.fromkeys(shape.format(piece) for piece in PIECES for shape in PLACES.values()))

LONG_TEXTS = [
    "good " * 10_000, "!" * 10_000, "\u0301" * 10_000, "👩‍👩‍👧" * 2_000, "\n" * 10_000, "a" * 1_000_000, "中" * 300_000,
    "good bad " * 110_000, "\ud83d" * 10_000, "(" * 10_000, "\u202e" * 5_000 + "x", "a b" * 30_000, "\0" * 10_000,
]  # fmt: skip
"""Texts of up to a megabyte."""
