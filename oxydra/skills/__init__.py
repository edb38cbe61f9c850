"""Skills: folders of instructions that a person has looked at (docs/skills.md)."""

from oxydra.skills.folders import MAIN, MAX_BYTES, PlaceName, Skill, find, places, read
from oxydra.skills.matter import Matter, SkillError, asked_for, expanded, listed, parse, split
from oxydra.skills.pins import Pin, Pins, to_json
from oxydra.skills.shelf import ROOT, Found, Shelf, checked

__all__ = [
    "MAIN",
    "MAX_BYTES",
    "ROOT",
    "Found",
    "Matter",
    "Pin",
    "Pins",
    "PlaceName",
    "Shelf",
    "Skill",
    "SkillError",
    "asked_for",
    "checked",
    "expanded",
    "find",
    "listed",
    "parse",
    "places",
    "read",
    "split",
    "to_json",
]
