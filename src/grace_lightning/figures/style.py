"""Colours that people with a colour vision deficiency can tell apart.

Source: M. Okabe and K. Ito, Color Universal Design (2008), https://jfly.uni-koeln.de/color/.
"""

BLUE, SKY, GREEN, YELLOW, PURPLE, VERMILION = "#0072B2", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00"

MATCHED = (SKY, YELLOW, PURPLE, GREEN, BLUE)
"""Of matched filaments, in turn; a number tells those of one colour apart."""

UNMATCHED = VERMILION

POSITIVE, NEGATIVE = VERMILION, BLUE

HEADS = {"nodes": (BLUE, "-"), "edges": (VERMILION, "--")}
"""Colour and line style of each."""
