"""What the study runs, as data: a cell is one bar of a figure, a part is the cells that answer one question."""

from dataclasses import asdict, dataclass, replace

from .arms import ARMS


@dataclass(frozen=True, order=True)
class Cell:
    """All but the seed and the learning rate, which is tuned for each cell."""

    world: str  # see worlds.py
    regime: str  # see bases.py
    arm: str  # see arms.py
    group_size: int = 8
    width: int = 64  # of the policy
    passes: int = 1  # over the prompts
    anchor: str = "likeliest"  # of several targets
    curve: str = ""  # of quality on validation: "coarse", "fine" (often, and after the first updates) or "" (none)

    @property
    def trains(self):
        return ARMS[self.arm].blocks is not None


def short(world):
    """A world's name in files and tables: of a path the last part, so that a study can go on from another folder."""
    return world.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, order=True)
class Run:
    """A cell with a seed and a learning rate: one policy, one file."""

    cell: Cell
    seed: int
    learning_rate: float  # 0: nothing is trained

    def __str__(self):
        """Its name as a file: every setting, in order."""
        cell = self.cell
        parts = [short(cell.world), cell.regime, cell.arm, f"g{cell.group_size}", f"w{cell.width}", f"x{cell.passes}"]
        return "_".join(
            [*parts, cell.anchor, *[cell.curve] * bool(cell.curve), f"lr{self.learning_rate:g}", f"seed{self.seed}"]
        )


@dataclass(frozen=True)
class Scale:
    """How much work is put into each cell."""

    seeds: int = 5
    tuning_seeds: int = 2  # the first of them
    rates: tuple = (1e-4, 3e-4, 1e-3)  # tried first
    more_rates: tuple = (3e-5, 3e-3)  # tried where the best so far is next to them
    prompts: int = 8192
    users: int = 25_000  # of a made-up shop
    converged: int = 1500  # updates of a converged base
    valid: int = 2000  # prompts, to tune by
    test: int = 3000

    @classmethod
    def quick(cls):
        """To see that everything runs: about a minute, and figures that mean nothing."""
        return cls(
            seeds=1,
            tuning_seeds=1,
            rates=(1e-3,),
            more_rates=(),
            prompts=256,
            users=2500,
            converged=150,
            valid=100,
            test=200,
        )

    def record(self):
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


# ---- the parts

REFERENCES = ("popular", "base")
OURS = ("sft-sqrt", "hybrid", "hybrid-sqrt", "grpo+sft")
PUBLISHED = ("grpo", "recast", "recast-branch", "sft")
HALVES = ("repair", "contrast", "dapo")
ALPHAS = ("sft", "sft-0.25", "sft-sqrt", "sft-0.75", "expected")
GROUP_SIZES = (4, 8, 16, 32, 64)
WIDTHS = (32, 64, 148)  # a factor of 16 in parameters
WRONG = (0, 10, 30, 50)


def _cells(places, arms, **settings):
    return tuple(Cell(world, regime, arm, **settings) for world, regime in places for arm in arms)


def parts(real=()):
    """The cells of each part, the most important part first: ``{name: (question, cells)}``.

    Args:
        real: paths of worlds of real interactions, for the parts ``whom`` and ``elsewhere``.
    """
    real = [path.rstrip("/") for path in real]
    sparse = [("sparse", "94"), ("sparse", "converged")]
    shares = [*(("sparse", share) for share in ("99", "94", "85", "converged")), ("dense", "70"), ("dense", "50")]
    wrong = [("sparse" if share == 0 else f"wrong-{share}", "converged") for share in WRONG]
    claims = ("grpo", "recast", "recast-branch")
    where = ("grpo", "hybrid-sqrt", "sft", "sft-sqrt")
    # Where a base finds hits: of one that does not, rollouts cannot pay.
    pays = [(world, "converged") for world in ("next-4", "judge", "thought", "sets-2", "cold")]
    several = [replace(cell, anchor=anchor)
               for cell in _cells([("next-4", "converged")], ("recast-branch", "hybrid-sqrt"), curve="coarse")
               for anchor in ("likeliest", "nearest", "random")]  # fmt: skip
    twists = (("", "94"), ("", "converged"), ("+wrong-30", "converged"), ("+cold", "94"))
    away = [
        ("other-1", "94"),
        ("other-1", "converged"),
        *((p + twist, regime) for p in real for twist, regime in twists),
    ]
    return {
        "map": ("Which arm at which share of all-zero groups?",
                (*_cells(shares, (*REFERENCES, *PUBLISHED, *OURS)), *_cells(sparse, HALVES))),
        "wrong": ("What do wrong labels do?",
                  _cells(wrong, ("base", "grpo", "recast-branch", "sft", "sft-sqrt", "expected", "hybrid-sqrt", "grpo+sft"))),
        "alpha": ("How far is an anchor to be trusted?",
                  _cells([*sparse, ("dense", "50"), ("wrong-30", "converged")], (*ALPHAS, "hybrid", "hybrid-sqrt", "hybrid-1"))),
        "pays": ("Where do rollouts pay?",
                 (*_cells(pays, ("base", *where), curve="coarse"), *_cells(pays, ("sft-sqrt",), passes=2, curve="coarse"),
                  *_cells([("value", "converged")], ("base", "grpo", "drgrpo", "sft-sqrt"), curve="coarse"), *several)),
        "budget": ("After what share of GRPO's rollouts is its best reached, by group size?",
                   tuple(c for g in GROUP_SIZES for c in _cells([("sparse", "94@8")], claims, group_size=g, curve="fine"))),
        "elsewhere": ("Does it hold where it was not chosen?",
                      _cells(away, (*REFERENCES, "grpo", "recast", "recast-branch", "sft", "sft-sqrt", "hybrid-sqrt"))),
        "whom": ("For whom does it change what, and whom does repair fall on?",
                 (*_cells([("sparse", "94"), *((p + twist, "94") for p in real for twist in ("", "+cold"))],
                          ("base", "grpo", "recast-branch", "sft", "sft-sqrt", "hybrid-sqrt")),
                  *_cells([("cold", "converged")], ("base", *where), curve="coarse"))),
        "size": ("The same share of GRPO's rollouts, by the size of the policy?",
                 tuple(c for w in WIDTHS for c in _cells([("sparse", "94")], claims, width=w, curve="fine"))),
        "map32": ("The map with groups of 32",
                  _cells([("sparse", "94"), ("sparse", "85"), ("sparse", "converged")],
                         (*REFERENCES, "grpo", "recast", "recast-branch", "sft-sqrt", "hybrid-sqrt"), group_size=32)),
    }  # fmt: skip


def quick_parts(real=()):
    """Of each part the place of its first cell, with arms that roll out and arms that do not."""
    arms = {"grpo", "hybrid-sqrt", "sft", "sft-sqrt", *REFERENCES}

    def place(cell):
        return cell.world, cell.regime, cell.group_size, cell.width

    return {
        name: (question, tuple(c for c in cells if place(c) == place(cells[0]) and c.arm in arms))
        for name, (question, cells) in parts(real).items()
    }


def expected_seconds(run, scale):
    """About how long a run takes on one core of the machine it was written on (an AMD EPYC): to weigh a progress bar by."""
    cell, arm = run.cell, ARMS[run.cell.arm]
    steps = -(-scale.prompts // 64) * cell.passes if cell.trains else 0
    drawn = (7 + 0.9 * cell.group_size) if arm.rolls_out else 0  # milliseconds for 64 prompts
    whole = 0.5 * cell.group_size * (cell.arm in ("repair", "grpo+sft")) + 0.1 * cell.group_size
    read = {"grpo": 10, "drgrpo": 10, "dapo": 4, "contrast": 7, "repair": 22}.get(cell.arm, 22)
    points = {"": 0, "coarse": 5, "fine": 20}[cell.curve]
    judged = 0.35 * (scale.valid + scale.test + points * min(scale.valid, 1000)) * (6 if cell.world == "thought" else 1)
    return (steps * (drawn + read + whole * arm.rolls_out) + judged + 600) * (cell.width / 64) ** 1.2 / 1000


def base_seconds(regime, width):
    """The same for a base policy."""
    return (40 if regime == "converged" else 8) * (width / 64) ** 1.2
