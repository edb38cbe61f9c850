"""Markdown as Telegram's messages: each part valid by itself and within the limit, nothing lost.

What may not be lost is what a person reads of the HTML that CommonMark makes of the same text. For
the examples of its specification that HTML is in the specification, whose text is not ours to
include: `COMMONMARK_SPEC` names its spec.txt, as in the package commonmark-spec of npm; without it
those tests are skipped.
"""

from __future__ import annotations

import html
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from oxydra.channels.markup import LIMIT, parts, plain, units
from tests.fake_telegram import text_of

# What the CommonMark specification has examples of, section by section, in our own words.
CONSTRUCTS = r"""
\tcode by a tab
a\tb
\!\"\#\$\*\<\&
&nbsp; &amp; &copy; &#35; &#0; &bogus;
***
---
_ _ _
# one
###### six
####### seven
#no heading
## closed ##
Setext\n===
Setext *two\nlines*\n---
    indented\n\n    code
```\nfence\n```
~~~ruby x=y\ndef a\n~~~
````\n```\n````
```unclosed\nx
<div>\n*raw*\n</div>
<!-- a -->
<b>in</b> a line
[foo]: /url "title"\n\n[foo]
[a](<b c>)
[a](javascript:x)
[a](https://x.y/?a=1&b="2")
![alt *x*](u.png "t")
a\nb
a  \nb
a\\nb
> quote\nlazy
> > nested\n> back
> # head\n> - a\n>   - b
- a\n- b
- a\n\n- b
1. a\n2. b
7) a\n8) b
- a\n  - b\n    - c\n\n      d
* \n* x
- ```\n  code\n  ```
1. > q
`` a ` b ``
`<b>`
*a **b** c*
**a *b***
*(**x**)*
__a__b
_a_b_
~~gone~~
<https://a.b>
<me@x.y>
https://bare.link/x_y_z
[![i](s.png)](https://l)
[*a* `b`](https://l)
"""
PIECES = [
    line.replace(r"\n", "\n").replace(r"\t", "\t") for line in CONSTRUCTS.strip("\n").split("\n")
]
PIECES += ["| a | b |\n|---|:-:|\n| `x` | **y** |", "a | b\n--|--\n1 | 2", "", "\u202e", "𝔘𝔫𝔦"]
PIECES += ["👩‍👩‍👧", "e\u0301", "\x1b[31m", "<", "&", ">", "\\"]

markdown = st.lists(
    st.one_of(
        st.sampled_from(PIECES),
        st.text(max_size=60),
        st.text("*_`~[]()<>!#-+>|\\\n &;:/", max_size=30),
        st.text("word é👍\n", min_size=100, max_size=400),
    ),
    max_size=12,
).flatmap(lambda found: st.sampled_from(["\n\n", "\n", " "]).map(lambda by: by.join(found)))
odd = st.one_of(
    st.characters(),
    st.characters(categories=["Cs"]),  # halves of pairs
    st.characters(categories=["Mn", "Me", "Cf", "Cc", "Zs", "Zl", "Zp", "Co", "Cn"]),
    st.characters(min_codepoint=0x10000),
    st.sampled_from("\u200d\u200c\u200e\u200f\u202a\u202e\u2066\u2069\ufe0f\u0301\u05d0\u0627"),
    st.sampled_from("*_`~[]()<>!#-+>|\\\n\t &;:/0a"),
)
odd_text = st.text(odd, max_size=40)
limits = st.sampled_from([64, 65, 100, 333, LIMIT])


def squeezed(text):
    return "".join(text.split())


class Read(HTMLParser):
    """What a person reads of HTML: `words` in their order, and `places` to which it leads."""

    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.words = []
        self.places = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "alt":
                self.words.append(value or "")
            elif name in ("href", "src"):
                self.places.append(value or "")

    def handle_data(self, data):
        self.words.append(data)


def rendering(source):
    """The HTML of a CommonMark renderer; tags that somebody wrote are text, as they are with us."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    render = parser.renderer.render

    def as_text(tokens, at, *_more):
        return html.escape(tokens[at].content)

    def described(tokens, at, *more):
        return f"<i>{render(tokens[at].children or [], *more)}</i>"

    parser.renderer.rules |= {"html_block": as_text, "html_inline": as_text, "image": described}
    return parser.render(source.encode("utf-8", "replace").decode())


def read_whole(source, limit):
    """All that the parts of a text say, each of which is what Telegram takes."""
    made = parts(source, limit)
    for part in made:
        read = text_of(part.html)  # raises for what Telegram refuses
        assert read == part.text and read.strip()
        assert units(read) <= limit
    return made, squeezed("".join(part.text for part in made))


def assert_in_order(words, whole):
    at = 0
    for word in words:
        word = squeezed(CONTROLS.sub("\ufffd", word))
        at = whole.find(word, at)
        assert at >= 0, (word, whole)
        at += len(word)


CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@given(markdown, limits)
def test_every_part_is_valid_and_nothing_is_lost(source, limit):
    _, whole = read_whole(source, limit)
    assert_in_order(Read(rendering(source)).words, whole)


@given(st.text(odd, max_size=5000), limits)
def test_any_unicode_is_valid_and_nothing_is_lost(source, limit):
    _, whole = read_whole(source, limit)
    assert_in_order(Read(rendering(source)).words, whole)


def specification():
    """The examples of CommonMark's specification: Markdown, and the HTML that it becomes."""
    found = os.environ.get("COMMONMARK_SPEC", "")
    if not found:
        return []
    text = Path(found).read_text(encoding="utf-8").replace("→", "\t")
    examples = re.findall(r"^`{32} example\n(.*?)^\.\n(.*?)^`{32}$", text, re.M | re.S)
    assert len(examples) > 600, found
    return examples


EXAMPLES = specification()
needs_specification = pytest.mark.skipif(
    not EXAMPLES, reason="COMMONMARK_SPEC names no spec.txt of commonmark-spec"
)


@needs_specification
@pytest.mark.parametrize("limit", [64, LIMIT])
def test_the_examples_of_the_specification_lose_nothing(limit):
    for source, expected in EXAMPLES:
        made, whole = read_whole(source, limit)
        read = Read(expected)
        assert_in_order(read.words, whole)
        led = html.unescape(html.unescape("".join(part.html for part in made)))
        assert all(squeezed(place) in squeezed(led) for place in read.places), source


@needs_specification
@given(st.lists(st.sampled_from(EXAMPLES or [("", "")]), min_size=2, max_size=12), odd_text, limits)
def test_examples_of_the_specification_in_one_message_lose_nothing(examples, between, limit):
    source = f"\n\n{between}\n\n".join(source for source, _ in examples)
    _, whole = read_whole(source, limit)
    assert_in_order(Read(rendering(source)).words, whole)


@given(st.text(), limits)
def test_plain_text_loses_nothing(text, limit):
    made = plain(text.encode("utf-8", "replace").decode(), limit)
    assert all(units(part) <= limit and part.strip() for part in made)
    expected = squeezed(CONTROLS.sub("\ufffd", text.encode("utf-8", "replace").decode()))
    assert squeezed("".join(made)) == expected


@pytest.mark.parametrize("piece", PIECES)
def test_each_construct_is_valid_alone(piece):
    for part in parts(piece):
        assert text_of(part.html) == part.text


def one(source):
    (part,) = parts(source)
    return part.html


@pytest.mark.parametrize(
    ("source", "html"),
    [
        ("**a *b* `c`** ~~d~~", "<b>a <i>b</i> </b><code>c</code> <s>d</s>"),
        ("# Head\ntext", "<b>Head</b>\n\ntext"),
        ("a\nb", "a\nb"),
        ("- a\n- b\n  1. c\n\nend", "• a\n• b\n  1. c\n\nend"),
        ("> q\n>\n> r\n\ns", "<blockquote>q\n\nr</blockquote>\n\ns"),
        ("```py\nx < 1\n```", '<pre><code class="language-py">x &lt; 1</code></pre>'),
        ("    x", "<pre>x</pre>"),
        ("[a](https://b.c)", '<a href="https://b.c">a</a>'),
        ("[a](javascript:b)", "[a](javascript:b)"),
        ("[a](/b)", "a (/b)"),
        ("![a](https://b.c/d)", '<a href="https://b.c/d">[image: a]</a>'),
        ("![a *b*\n`c` ![d](e)](https://f.g)", '<a href="https://f.g">[image: a b c d]</a>'),
        ("[`a`](https://b.c)", '<a href="https://b.c">a</a>'),
        ("|a|b|\n|-|-|\n|1|22|", "<pre>a │ b\n──┼───\n1 │ 22</pre>"),
        ("|a|\n|-|\n|b\x1c|", "<pre>a\n──\nb\ufffd</pre>"),
        ("<b>x</b>", "&lt;b&gt;x&lt;/b&gt;"),
        ("a &#27;[0m", "a \ufffd[0m"),
        ("\ud800", "?"),
    ],
)
def test_what_becomes_of(source, html):
    assert one(source) == html


def test_code_is_closed_and_opened_again():
    made = parts("```sh\n" + "echo hello\n" * 20 + "```", 64)
    assert len(made) > 3
    for part in made:
        assert re.fullmatch(
            r'<pre><code class="language-sh">(echo hello\n?)+</code></pre>', part.html
        )


def test_cuts_come_between_paragraphs_lines_words_and_never_within_a_character():
    assert [part.text for part in parts("a" * 50 + "\n\n" + "b" * 50, 64)] == ["a" * 50, "b" * 50]
    assert [part.text for part in parts("a" * 50 + "\n" + "b" * 50, 64)] == ["a" * 50, "b" * 50]
    assert [part.text for part in parts("a" * 50 + " " + "b" * 50, 64)] == ["a" * 50, "b" * 50]
    assert [part.text for part in parts("👍" * 40, 65)] == ["👍" * 32, "👍" * 8]


def test_what_says_nothing_is_no_message():
    assert parts("") == parts(" \n\t ") == parts("[a]: /b") == plain("\n") == []


def test_hostile_text_takes_no_time():
    for source in ("*" * 50_000, "[" * 50_000, "> " * 20_000, "`" * 50_000, "- " * 20_000):
        assert all(units(part.text) <= LIMIT for part in parts(source))
