"""Invented bird species, ten to a genus, each with a name that says what it looks like."""

import numpy as np

from plumage.birds.portrait import COLOURS, Build, Species

GENUS_SIZE = 10
BUILDS = (  # noun, height, head, neck; bill, depth, curve; tail, fork, cocked; legs, upright
    Build("finch", 0.62, 0.26, 0.00, 0.22, 0.20, 0.10, 0.55, -0.15, 0, 0.16, 22),
    Build("warbler", 0.54, 0.25, 0.00, 0.20, 0.06, 0.02, 0.50, 0.00, 0, 0.16, 18),
    Build("thrush", 0.56, 0.24, 0.04, 0.22, 0.07, 0.06, 0.50, 0.05, 0, 0.26, 26),
    Build("shrike", 0.56, 0.28, 0.00, 0.20, 0.13, 0.35, 0.65, 0.12, -6, 0.16, 34),
    Build("wren", 0.66, 0.26, 0.00, 0.26, 0.06, 0.20, 0.40, 0.15, 62, 0.16, 8),
    Build("sunbird", 0.50, 0.25, 0.02, 0.48, 0.06, 0.32, 0.45, 0.35, 0, 0.14, 28),
    Build("duck", 0.52, 0.24, 0.14, 0.30, 0.17, -0.12, 0.26, 0.30, 22, 0.00, 4),
    Build("heron", 0.50, 0.25, 0.34, 0.42, 0.11, 0.00, 0.22, 0.10, -10, 0.32, 12),
    Build("plover", 0.56, 0.25, 0.03, 0.18, 0.07, 0.00, 0.30, 0.10, 0, 0.32, 10),
    Build("curlew", 0.52, 0.24, 0.16, 0.60, 0.08, 0.34, 0.26, 0.10, 0, 0.36, 12),
    Build("dove", 0.56, 0.25, 0.10, 0.15, 0.06, 0.30, 0.56, 0.12, 0, 0.20, 14),
    Build("parrot", 0.54, 0.27, 0.00, 0.24, 0.26, 0.55, 0.65, 0.40, -4, 0.12, 31),
    Build("toucan", 0.54, 0.25, 0.02, 0.58, 0.23, 0.18, 0.50, 0.05, 0, 0.12, 32),
    Build("fisher", 0.58, 0.28, 0.00, 0.56, 0.14, 0.00, 0.30, 0.00, 4, 0.10, 31),
    Build("hawk", 0.56, 0.24, 0.02, 0.22, 0.18, 0.50, 0.60, 0.05, -4, 0.18, 34),
    Build("tern", 0.46, 0.23, 0.03, 0.30, 0.08, 0.05, 0.55, -0.55, 4, 0.20, 6),
    Build("grebe", 0.50, 0.24, 0.28, 0.26, 0.07, 0.00, 0.12, 0.20, 12, 0.00, 4),
    Build("jay", 0.52, 0.25, 0.02, 0.25, 0.10, 0.08, 0.68, 0.12, 0, 0.18, 22),
    Build("wagtail", 0.52, 0.26, 0.00, 0.18, 0.06, 0.00, 0.68, 0.10, 6, 0.24, 12),
    Build("quail", 0.70, 0.24, 0.06, 0.14, 0.10, 0.40, 0.20, 0.20, -18, 0.20, 16),
)
PREFIXES = ("Marsh", "Thorn", "Cliff", "River", "Heath", "Dune", "Ember", "Frost", "Island", "Storm", "Amber")
BRIGHT = ("Scarlet", "Orange", "Golden", "Emerald", "Azure", "Violet", "Rose", "Russet", "Black", "White", "Indigo")
# trait: how it reads in a name, and the traits that it borders on and so has to stand out from
TRAITS: dict[str, tuple[str, tuple[str, ...]]] = {
    "head": ("headed", ()), "breast": ("breasted", ()), "tail": ("tailed", ()),
    "wing": ("winged", ("belly",)), "bars": ("barred", ("wing",)), "bill": ("billed", ("head",)),
    "cap": ("capped", ("head",)), "mask": ("masked", ("head", "cap")), "crest": ("crested", ("head", "cap")),
    "cheek": ("cheeked", ("head", "mask")), "throat": ("throated", ("head", "breast")),
    "collar": ("collared", ("head", "breast", "back")), "belts": ("belted", ("breast", "belly")),
    "spots": ("spotted", ("breast", "belly")),
}  # fmt: skip
# marks that would hide each other: a genus has one of each group
RIVALS = ("belts", "spots"), ("cap", "head"), ("cheek", "throat", "collar")
Look = dict[str, str]


def differ(one: str, other: str) -> bool:
    """Tell whether two colours stay apart in a small picture under any light."""
    gaps = [abs(a - b) for a, b in zip(COLOURS[one], COLOURS[other], strict=True)]
    return max(gaps) >= 75 and sum(gaps) >= 120


def legible(look: Look) -> bool:
    """Tell whether every trait stands out from the plumage around it."""
    borders = [(trait, ground) for trait, (_, grounds) in TRAITS.items() for ground in grounds]
    return all(differ(look[one], look[other]) for one, other in borders if one in look and other in look)


def unlike(one: Look, other: Look) -> int:
    """Count the traits in which two looks of a genus differ."""
    return sum(one.get(trait) != other.get(trait) for trait in TRAITS)


def genus_look(rng: np.random.Generator) -> Look:
    """Draw a legible plumage without marks, from which the species of a genus vary."""
    while True:
        back, wing, head = rng.choice(["Grey", "Slate", "Umber", "Olive", "Russet", "Azure", "Emerald", "Indigo"], 3)
        wing, head = (back if rng.random() < chance else other for chance, other in ((0.5, wing), (0.6, head)))
        belly = rng.choice(["White", "Buff", "Golden", "Grey"])
        bill, legs = rng.choice(["Black", "Golden", "Scarlet"]), rng.choice(["Umber", "Orange", "Slate"])
        look = {"back": back, "head": head, "belly": belly, "breast": belly, "wing": wing, "tail": wing}
        look = {trait: str(colour) for trait, colour in {**look, "bill": bill, "legs": legs}.items()}
        if legible(look) and differ(look["head"], look["belly"]) and differ(look["back"], look["belly"]):
            return look


def genus_palette(look: Look, build: Build, rng: np.random.Generator) -> dict[str, list[str]]:
    """Draw, for seven traits, up to three colours that differ clearly from the genus' look and from each other."""
    unfit = {"bill": build.bill * build.depth < 0.055, "tail": build.tail < 0.3}
    for rivals in RIVALS:
        kept = rng.choice(rivals)
        unfit |= {trait: trait != kept for trait in rivals}
    palette: dict[str, list[str]] = {}
    for trait in rng.permutation([trait for trait in TRAITS if not unfit.get(trait)])[:7].tolist():
        taken = [look[trait]] if trait in look else []
        for colour in rng.permutation(BRIGHT).tolist():
            if legible({**look, trait: colour}) and all(differ(colour, other) for other in taken):
                taken.append(colour)
        palette[trait] = [colour for colour in taken if colour != look.get(trait)][:3]
    return {trait: colours for trait, colours in palette.items() if colours}


def vary(look: Look, palette: dict[str, list[str]], count: int, rng: np.random.Generator) -> tuple[Look, list[str]]:
    """Draw a legible look with ``count`` traits of the palette changed. Returns it and the names of these traits."""
    while True:
        traits = rng.choice(list(palette), count, replace=False).tolist()
        new = {**look, **{trait: str(rng.choice(palette[trait])) for trait in traits}}
        if unlike(look, new) == count and legible(new):
            return new, traits


def genus_species(noun: str, start: int, build: Build, rng: np.random.Generator) -> list[Species]:
    """Draw ten species, from number ``start``: each third differs from the one before in one trait, others in more."""
    base = genus_look(rng)
    palette = genus_palette(base, build, rng)
    birds: list[Species] = []
    while len(birds) < GENUS_SIZE:
        sister = len(birds) % 3 == 2
        look, traits = vary(birds[-1].look if sister else base, palette, 1 if sister else int(rng.integers(2, 5)), rng)
        if any(unlike(look, bird.look) < (1 if sister else 2) for bird in birds):
            continue
        names = [f"{look[trait]}-{TRAITS[trait][0]} {noun}" for trait in traits]
        if free := [name for name in names if name not in {bird.name for bird in birds}]:
            birds.append(Species(free[0], start + len(birds), build, look))
    return birds


def species_list(species: int, seed: int) -> list[Species]:
    """Return the first ``species`` birds of the seed's world, 2200 at most: ten to a genus, with unique names."""
    rng = np.random.default_rng([seed, 1])
    prefixes, builds, birds = rng.permutation(PREFIXES), rng.permutation(len(BUILDS)), list[Species]()
    for genus in range(-(-species // GENUS_SIZE)):
        turn, row = divmod(genus, len(BUILDS))
        build = BUILDS[builds[row]]
        noun = prefixes[(turn * 3 + row) % len(prefixes)] + build.noun
        birds += genus_species(noun, genus * GENUS_SIZE, build, np.random.default_rng([seed, 2, genus]))
    return birds[:species]
