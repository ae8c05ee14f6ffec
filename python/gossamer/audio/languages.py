"""The languages that Whisper knows, by the codes of its tokens (ISO 639, and some of its own)."""

from __future__ import annotations

from ..errors import GossamerError, did_you_mean

_TABLE = """
en english;zh chinese;de german;es spanish;ru russian;ko korean;fr french;ja japanese;pt portuguese;tr turkish;pl polish
ca catalan;nl dutch;ar arabic;sv swedish;it italian;id indonesian;hi hindi;fi finnish;vi vietnamese;he hebrew
uk ukrainian;el greek;ms malay;cs czech;ro romanian;da danish;hu hungarian;ta tamil;no norwegian;th thai;ur urdu
hr croatian;bg bulgarian;lt lithuanian;la latin;mi maori;ml malayalam;cy welsh;sk slovak;te telugu;fa persian;lv latvian
bn bengali;sr serbian;az azerbaijani;sl slovenian;kn kannada;et estonian;mk macedonian;br breton;eu basque;is icelandic
hy armenian;ne nepali;mn mongolian;bs bosnian;kk kazakh;sq albanian;sw swahili;gl galician;mr marathi;pa punjabi
si sinhala;km khmer;sn shona;yo yoruba;so somali;af afrikaans;oc occitan;ka georgian;be belarusian;tg tajik;sd sindhi
gu gujarati;am amharic;yi yiddish;lo lao;uz uzbek;fo faroese;ht haitian creole;ps pashto;tk turkmen;nn nynorsk
mt maltese;sa sanskrit;lb luxembourgish;my myanmar;bo tibetan;tl tagalog;mg malagasy;as assamese;tt tatar;haw hawaiian
ln lingala;ha hausa;ba bashkir;jw javanese;su sundanese;yue cantonese
"""
LANGUAGES = dict(entry.split(" ", 1) for line in _TABLE.split("\n") for entry in line.split(";") if entry)
"""Names in English by code."""

_CODES = {name: code for code, name in LANGUAGES.items()} | {
    "mandarin": "zh", "castilian": "es", "burmese": "my", "flemish": "nl", "haitian": "ht", "letzeburgesch": "lb",
    "moldavian": "ro", "moldovan": "ro", "panjabi": "pa", "pushto": "ps", "sinhalese": "si", "valencian": "ca",
}  # fmt: skip


def language_code(language: str) -> str:
    """Returns the code of a language that is named by it, or in English, in letters of any size.

    Raises:
        GossamerError: there is none such.
    """
    word = language.strip().lower()
    code = word if word in LANGUAGES else _CODES.get(word)
    if code is None:
        raise GossamerError(f"language {language!r:.80} is not known{did_you_mean(word, [*LANGUAGES, *_CODES])}")
    return code
