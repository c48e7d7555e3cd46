"""Tables and figures of the study: `python tests/language/effect.py runs/effect.jsonl --images docs/images`."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from replay import mean, ragged

# Parts of an answer, by its tokens.
PARTS = ((0, 10), (10, 20), (20, 40), (40, 70), (70, 100), (100, 150))
# Of Qwen2.5-VL-7B, in weights that a decoding step reads: one step of ΔV goes through the last layer's output
# projection and MLP once back and once forward; an exact head twice more. Gathered rows are under 0.1% of it.
_ALL, _HEAD = 7.07e9, 152064 * 3584
_TAIL = 3584 * 3584 + 3 * 3584 * 18944
Line = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """The runs of a file of :mod:`study`."""

    lines: list[Line]

    @classmethod
    def read(cls, path: Path) -> "Study":
        return cls([json.loads(line) for line in path.read_text().splitlines()])

    def base(self, line: Line) -> Line:
        """The base model's run beside ``line``."""
        same = ("kind", "instruction", "seed")
        return next(
            other
            for other in self.lines
            if other["run"].get("method") == {"policy": "off"}
            and all(other["run"][name] == line["run"][name] for name in same)
        )

    def of(self, kind: str, instruction: str = "reason", **wanted: Any) -> list[Line]:
        """The runs of a kind whose method has the ``wanted`` settings."""
        return [
            line
            for line in self.lines
            if (line["run"]["kind"], line["run"].get("instruction")) == (kind, instruction)
            and all(line["run"]["method"].get(name) == value for name, value in wanted.items())
        ]

    def percent(self, line: Line, part: tuple[int, int] = (0, 10_000)) -> tuple[float, float]:
        """The change of the entropy that tokens were chosen from, over a part of the answers, in percent of the base's,
        and its standard error, clustered by question."""
        base = ragged(self.base(line)["entropy"])
        change = (ragged(line["entropy"]) - base)[:, slice(*part)]
        scale, (value, error) = mean(base[:, slice(*part)])[0], mean(change)
        return 100 * value / scale, 100 * error / scale


def overhead(line: Line) -> float:
    """Percent of a decoding step's weights on Qwen2.5-VL-7B, for the share of tokens that had an update."""
    method, alpha = line["run"]["method"], ragged(line["alpha"])
    share = (alpha != 0)[np.isfinite(alpha)].mean()
    weights = _TAIL + (_HEAD if method.get("head_topk") == 0 else 0)
    return float(100 * share * method.get("steps_per_update", 1) * 2 * weights / _ALL)


def replay_table(study: Study, lines: list[Line]) -> str:
    """One row a setting."""
    parts = [f"{start + 1}–{stop}" for start, stop in PARTS]
    rows = [["setting", *parts, "all", "KL", "choices changed", "shift", "overhead"]]
    for line in lines:
        value, error = study.percent(line)
        rows.append(
            [
                name_of(line["run"]["method"]),
                *(f"{study.percent(line, part)[0]:+.0f}" for part in PARTS),
                f"**{value:+.1f}** ± {error:.1f}",
                f"{np.nanmean(ragged(line['kl'])):.3f}",
                f"{100 * np.nanmean(ragged(line['changed'])):.1f}%",
                f"{np.nanmean(ragged(line['shift'])):.2f}",
                f"{overhead(line):.1f}%",
            ]
        )
    return markdown(rows)


def switch_table(study: Study, lines: list[Line]) -> str:
    """The change, and the share of updates that raise the entropy, by the part of the answer."""
    rows = [["setting", *(f"{start + 1}–{stop}" for start, stop in PARTS), "all"]]
    for line in lines:
        alpha = ragged(line["alpha"])
        cells = []
        for part in PARTS:
            made = alpha[:, slice(*part)]
            raised = 100 * (made > 0).sum() / max(1, (np.nan_to_num(made) != 0).sum())
            cells.append(f"{study.percent(line, part)[0]:+.0f} ({raised:.0f}%)")
        rows.append([name_of(line["run"]["method"]), *cells, "{:+.1f} ± {:.1f}".format(*study.percent(line))])
    return markdown(rows)


def free_table(study: Study, lines: list[Line]) -> str:
    """Free-running: each row against the base's answers to the same questions with the same seed."""
    rows = [["setting", "entropy", "ΔH before texts differ", "tokens", "repeated", "right", "right − base"]]
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(json.dumps(line["run"]["method"]), []).append(line)
    for group in groups.values():
        bases = [study.base(line) for line in group]
        ahead = [before_they_differ(line, base) for line, base in zip(group, bases, strict=True)]
        # A question is one cluster over all its seeds.
        value, error = mean(np.concatenate(ahead, axis=1))
        right = np.mean([line["right"] for line in group], axis=0)
        paired = right - np.mean([base["right"] for base in bases], axis=0)
        rows.append(
            [
                name_of(group[0]["run"]["method"]),
                f"{mean(np.concatenate([ragged(line['entropy']) for line in group], axis=1))[0]:.2f}",
                f"{value:+.3f} ± {error:.3f}",
                f"{np.mean([len(answer) for line in group for answer in line['tokens']]):.0f}",
                f"{100 * np.mean([repeated(answer) for line in group for answer in line['tokens']]):.0f}%",
                f"{100 * right.mean():.0f}%",
                f"{100 * paired.mean():+.0f} ± {100 * paired.std(ddof=1) / np.sqrt(len(paired)):.0f}",
            ]
        )
    return markdown(rows)


def before_they_differ(line: Line, base: Line) -> np.ndarray:
    """The entropy's change at each token up to the first one that differs, (questions, tokens), nats."""
    rows = []
    for ours, theirs, entropy, was in zip(
        line["tokens"], base["tokens"], line["entropy"], base["entropy"], strict=True
    ):
        same = [a == b for a, b in zip(ours, theirs, strict=False)]
        # The first differing token still follows the same text.
        length = same.index(False) + 1 if False in same else len(same)
        rows.append(np.array(entropy[:length]) - np.array(was[:length]))
    return ragged(rows)


def repeated(tokens: list[int], n: int = 4) -> float:
    """The share of an answer's runs of ``n`` tokens that have stood there before."""
    runs = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def temperature_table(study: Study, lines: list[Line]) -> str:
    """Beside each run the temperature of the base model that has its entropy."""
    rows = [["setting", "ΔH", "KL", "choices changed", "temperature of equal ΔH", "its KL"]]
    base = mean(ragged(study.base(lines[0])["entropy"]))[0]
    scale = [line for line in study.lines if line["run"]["kind"] == "temperature"]
    at = [line["temperature"] for line in scale]
    effect = [100 * (mean(ragged(line["entropy"]))[0] / base - 1) for line in scale]
    kl = [mean(ragged(line["kl"]))[0] for line in scale]
    for line in lines:
        value, _ = study.percent(line)
        temperature = float(np.interp(value, effect, at))
        cells = [f"{value:+.1f}%", f"{np.nanmean(ragged(line['kl'])):.3f}"]
        cells += [f"{100 * np.nanmean(ragged(line['changed'])):.1f}%", f"{temperature:.2f}"]
        rows.append([name_of(line["run"]["method"]), *cells, f"{np.interp(temperature, at, kl):.3f}"])
    return markdown(rows)


def name_of(method: dict[str, Any]) -> str:
    """A setting in words that say what it is made of."""
    return ", ".join(f"{name} {value}" for name, value in method.items())


def markdown(rows: list[list[str]]) -> str:
    """A table whose first row is its head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def smooth(rows: list[list[float]], width: int = 10) -> np.ndarray:
    """The mean over questions at each token, over a window of tokens before and after."""
    curve = np.nanmean(ragged(rows), axis=0)
    padded = np.pad(curve, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")[: len(curve)]


def curves_figure(study: Study, path: Path) -> None:
    """The entropy along the answers: each preset under each policy, contexts identical."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3), sharey=True)
    for axis, policy in zip(axes, ("minimize", "maximize", "switch"), strict=True):
        runs = [line for line in study.of("replay", policy=policy) if "preset" in line["run"]["method"]]
        lines = {line["run"]["method"]["preset"]: line for line in runs}
        axis.plot(smooth(study.base(next(iter(lines.values())))["entropy"]), color="black", label="base")
        for name, colour in (("gentle", "tab:green"), ("default", "tab:blue"), ("strong", "tab:red")):
            axis.plot(smooth(lines[name]["entropy"]), color=colour, label=name)
        axis.set(title=policy, xlabel="token")
    axes[0].set_ylabel("entropy chosen from, nats")
    axes[0].set_ylim(bottom=0)
    axes[2].legend(frameon=False, fontsize=8)
    save(figure, path)


def frontier_figure(study: Study, path: Path) -> None:
    """What an effect costs, in weights and in KL."""
    figure, (cost, harm) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    kinds: list[tuple[str, str, Callable[[dict[str, Any]], bool]]] = [
        ("ΔV kept", "tab:blue", lambda method: bool(method.get("keep_shift", False))),
        ("ΔV from 0", "tab:red", lambda method: method.get("keep_shift") is False),
    ]
    lines = [line for line in study.of("replay", policy="minimize") if "preset" not in line["run"]["method"]]
    for label, colour, is_one in kinds:
        chosen = [line for line in lines if is_one(line["run"]["method"])]
        effect = [study.percent(line)[0] for line in chosen]
        cost.scatter([overhead(line) for line in chosen], effect, s=14, color=colour, label=label)
        harm.scatter([np.nanmean(ragged(line["kl"])) for line in chosen], effect, s=14, color=colour)
    base = mean(ragged(study.of("replay", policy="off")[0]["entropy"]))[0]
    heat = [line for line in study.lines if line["run"]["kind"] == "temperature" and line["temperature"] <= 1]
    effect = [100 * (mean(ragged(line["entropy"]))[0] / base - 1) for line in heat]
    harm.plot([mean(ragged(line["kl"]))[0] for line in heat], effect, color="grey", label="temperature")
    for name, marker in (("gentle", "v"), ("default", "o"), ("strong", "^")):
        line = study.of("replay", preset=name, policy="minimize")[0]
        for axis, x in ((cost, overhead(line)), (harm, np.nanmean(ragged(line["kl"])))):
            axis.scatter(
                [x], [study.percent(line)[0]], marker=marker, s=60, facecolors="none", edgecolors="black", label=name
            )
    cost.set(xlabel="overhead, % of a decoding step's weights (7B)", ylabel="ΔH, %", xlim=(0, 15))
    harm.set(xlabel="KL to base, nats", xlim=(0, 0.2), ylim=(-45, 1))
    cost.legend(frameon=False, fontsize=8)
    harm.legend(frameon=False, fontsize=8)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Writes a picture."""
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Prints the tables and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--images", type=Path)
    options = parser.parse_args()
    study = Study.read(options.study)
    presets = [line for line in study.of("replay") if "preset" in line["run"]["method"]]
    grid = [line for line in study.of("replay") if "preset" not in line["run"]["method"]]
    switched = [line for line in study.of("replay") if line["run"]["method"]["policy"] == "switch"]
    print("## Presets\n", replay_table(study, presets), sep="\n")
    print("\n## Their temperatures\n", temperature_table(study, presets), sep="\n")
    print("\n## The switch\n", switch_table(study, switched), sep="\n")
    print("\n## Grid\n", replay_table(study, grid), sep="\n")
    print("\n## Another instruction\n", replay_table(study, study.of("replay", "story")), sep="\n")
    print("\n## Greedy\n", free_table(study, study.of("greedy")), sep="\n")
    print("\n## Sampled\n", free_table(study, study.of("sampled")), sep="\n")
    if options.images:
        options.images.mkdir(parents=True, exist_ok=True)
        curves_figure(study, options.images / "effect-curves.png")
        frontier_figure(study, options.images / "effect-frontier.png")


if __name__ == "__main__":
    main()
