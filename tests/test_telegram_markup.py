"""Markdown as Telegram's messages: each part valid by itself and within the limit, nothing lost."""

from __future__ import annotations

import re

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
limits = st.sampled_from([64, 65, 100, 333, LIMIT])


def squeezed(text):
    return "".join(text.split())


def said(source):
    """The words that a document says, by an independent walk over what the parser found."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    text = source.encode("utf-8", "replace").decode()
    for token in parser.parse(text):
        if token.type in ("fence", "code_block", "html_block"):
            yield token.content
        for child in token.children or ():
            if child.type in ("text", "code_inline", "html_inline", "text_special", "image"):
                yield child.content


CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@given(markdown, limits)
def test_every_part_is_valid_and_nothing_is_lost(source, limit):
    made = parts(source, limit)
    for part in made:
        read = text_of(part.html)  # raises for what Telegram refuses
        assert read == part.text and read.strip()
        assert units(read) <= limit
    whole = squeezed("".join(part.text for part in made))
    at = 0
    for words in said(source):
        word = squeezed(CONTROLS.sub("\ufffd", words))
        at = whole.find(word, at)
        assert at >= 0, (words, whole)
        at += len(word)


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
        ("[`a`](https://b.c)", '<a href="https://b.c">a</a>'),
        ("|a|b|\n|-|-|\n|1|22|", "<pre>a │ b\n──┼───\n1 │ 22</pre>"),
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
