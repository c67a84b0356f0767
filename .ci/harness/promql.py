"""Names in PromQL: which metrics an expression reads and which labels it goes by.

Not here: evaluation, which Prometheus itself does.
"""

import re

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|\[[^\]]*\]|[A-Za-z_:][A-Za-z0-9_:]*|[0-9.]+(?:[eE][+-]?[0-9]+)?|[=!]~|[=!<>]=|\S')
# Words before a list of labels in brackets.
LABEL_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
WORDS = LABEL_LISTS | {"and", "or", "unless", "bool", "offset", "inf", "nan"}


def tokens(expression):
    return TOKEN.findall(expression)


def reads(expression):
    """`(metrics, labels)`: each metric with the labels its selector has, and the labels of by, on and so on."""
    found, grouped = [], set()
    words = tokens(expression)
    at = 0
    while at < len(words):
        word = words[at]
        after = words[at + 1] if at + 1 < len(words) else ""
        if word in LABEL_LISTS and after == "(":
            end = words.index(")", at)
            grouped.update(w for w in words[at + 2:end] if w != ",")
            at = end
        elif is_name(word) and word.lower() not in WORDS and after not in ("(", "by", "without"):
            if after == "{":
                end = words.index("}", at)
                found.append((word, {words[i - 1] for i in range(at + 2, end) if words[i] in ("=", "!=", "=~", "!~")}))
                at = end
            else:
                found.append((word, set()))
        at += 1
    return found, grouped


def is_name(word):
    return re.fullmatch(r"[A-Za-z_:][A-Za-z0-9_:]*", word) is not None


def exposed(page):
    """Every series name of a `/metrics` page, with the labels it has."""
    names = {}
    for line in page.splitlines():
        match = re.match(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})? \S+$", line)
        if match and not line.startswith("#"):
            labels = set(re.findall(r'([A-Za-z_][A-Za-z0-9_]*)="', match[2] or ""))
            names.setdefault(match[1], set()).update(labels)
    return names


def test():
    found, grouped = reads('sum by (le, job) (rate(a_bucket{x="y,}",z=~"$v"}[5m])) / on (i) group_left () b > bool 0 or vector(1e3)')
    assert found == [("a_bucket", {"x", "z"}), ("b", set())], found
    assert grouped == {"le", "job", "i"}, grouped
    assert exposed('# TYPE a counter\na{b="c d",e="f"} 1\nplain 2.5\n') == {"a": {"b", "e"}, "plain": set()}


test()
