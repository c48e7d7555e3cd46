"""Tables and figures of the study: `python tests/language/effect.py runs/effect.jsonl --images docs/images`."""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from replay import mean, ragged
from study import DEFAULT, LONG, PRESETS, TOKENS

# Parts of an answer, by its tokens.
PARTS = ((0, 10), (10, 20), (20, 40), (40, 70), (70, 100))
ALL = (0, 10_000)
# Of Qwen2.5-VL-7B, in weights that a decoding step reads: one step of ΔV goes through the last layer's output
# projection and MLP once back and once forward; an exact head twice more. Gathered rows are under 0.1% of it.
_WEIGHTS, _HEAD = 7.07e9, 152064 * 3584
_TAIL = 3584 * 3584 + 3 * 3584 * 18944
Line = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """The runs of a file of :mod:`study`."""

    lines: list[Line]

    @classmethod
    def read(cls, path: Path) -> "Study":
        """``path``: JSON lines."""
        return cls([json.loads(line) for line in path.read_text().splitlines()])

    def runs(self, kind: str, tokens: int = TOKENS) -> list[Line]:
        """Those of one kind, the base model's left out."""
        runs = [line for line in self.lines if "method" in line["run"]]
        runs = [line for line in runs if (line["run"]["kind"], line["run"]["tokens"]) == (kind, tokens)]
        return [line for line in runs if line["run"]["method"]["policy"] != "off"]

    def base(self, line: Line) -> Line:
        """The base model's run beside ``line``."""
        beside = {name: value for name, value in line["run"].items() if name != "method"}
        bases = [other for other in self.lines if other["run"].get("method", {}).get("policy") == "off"]
        return next(other for other in bases if beside.items() <= other["run"].items())

    def preset(self, name: str, policy: str, tokens: int = TOKENS) -> Line:
        """The replay of a preset."""
        method = asdict(replace(PRESETS[name], policy=policy))
        return next(line for line in self.runs("replay", tokens=tokens) if line["run"]["method"] == method)

    def temperatures(self) -> list[Line]:
        """The control, from cold to hot."""
        return [line for line in self.lines if line["run"]["kind"] == "temperature"]

    def percent(self, line: Line, part: tuple[int, int] = ALL) -> tuple[float, float]:
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
    weights = _TAIL + (0 if method["head_topk"] else _HEAD)
    return float(100 * share * method["steps_per_update"] * 2 * weights / _WEIGHTS)


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
                f"{kl_of(line):.3f}",
                f"{100 * np.nanmean(ragged(line['changed'])):.1f}%",
                f"{np.nanmean(ragged(line['shift'])):.2f}",
                f"{overhead(line):.1f}%",
            ]
        )
    return markdown(rows)


def switch_table(study: Study, lines: list[Line]) -> str:
    """The change, and the share of updates that raise the entropy, by the part of the answer."""
    parts = (*PARTS, (TOKENS, LONG))
    rows = [["setting", *(f"{start + 1}–{stop}" for start, stop in parts), "all"]]
    for line in lines:
        alpha = ragged(line["alpha"])
        cells = []
        for part in parts:
            made = np.nan_to_num(alpha[:, slice(*part)])
            raised = 100 * (made > 0).sum() / max(1, (made != 0).sum())
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
    scale = study.temperatures()
    at = [line["temperature"] for line in scale]
    effect = [100 * (mean(ragged(line["entropy"]))[0] / base - 1) for line in scale]
    kl = [mean(ragged(line["kl"]))[0] for line in scale]
    for line in lines:
        value, _ = study.percent(line)
        temperature = float(np.interp(value, effect, at))
        cells = [f"{value:+.1f}%", f"{kl_of(line):.3f}"]
        cells += [f"{100 * np.nanmean(ragged(line['changed'])):.1f}%", f"{temperature:.2f}"]
        rows.append([name_of(line["run"]["method"]), *cells, f"{np.interp(temperature, at, kl):.3f}"])
    return markdown(rows)


def name_of(method: dict[str, Any]) -> str:
    """A setting in words: a preset's name, or what it is made of."""
    names = [name for name in PRESETS if asdict(replace(PRESETS[name], policy=method["policy"])) == method]
    if names:
        return f"**{names[0]}**, {method['policy']}"
    optimizer = {"adam": f"Adam β1 {method['beta1']:g}", "nsgd": "nSGD", "sgd": "SGD"}[method["optimizer"]]
    words = [] if method["policy"] == "minimize" else [method["policy"]]
    words += ["kept" if method["keep_shift"] else "from 0", optimizer, f"rate {method['learning_rate']:g}"]
    words += [f"every {method['update_every']}"]
    usual = asdict(DEFAULT)
    for name, shown in _SHOWN.items():
        if method[name] != usual[name] and not (name == "ema_decay" and method["policy"] != "switch"):
            words.append(shown.format(method[name]))
    return ", ".join(words)


_SHOWN = {
    "steps_per_update": "{} steps",
    "min_entropy": "H ≥ {:g}",
    "norm": "norm {}",
    "beta2": "β2 {:g}",
    "ema_decay": "EMA {:g}",
    "ema_correction": "corrected",
    "head_topk": "{} rows",
    "seed": "seed {}",
}


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
        # The switch takes longer to show what it does.
        names, tokens = (_COLOURS, TOKENS) if policy != "switch" else (("default", "strong"), LONG)
        lines = {name: study.preset(name, policy, tokens) for name in names}
        axis.plot(smooth(study.base(lines["default"])["entropy"]), color="black", label="base")
        for name, line in lines.items():
            axis.plot(smooth(line["entropy"]), color=_COLOURS[name], label=name)
        axis.set(title=policy, xlabel="token")
    axes[0].set_ylabel("entropy chosen from, nats")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, path)


_COLOURS = {"gentle": "tab:green", "default": "tab:blue", "strong": "tab:red"}


def frontier_figure(study: Study, path: Path) -> None:
    """What an effect costs, in weights and in KL."""
    figure, (cost, harm) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    lines = [line for line in study.runs("replay") if line["run"]["method"]["policy"] == "minimize"]
    for kept, label, colour in ((True, "ΔV kept", "tab:blue"), (False, "ΔV from 0", "tab:red")):
        chosen = [line for line in lines if line["run"]["method"]["keep_shift"] == kept]
        effect = [study.percent(line)[0] for line in chosen]
        cost.scatter([overhead(line) for line in chosen], effect, s=14, color=colour, label=label)
        harm.scatter([kl_of(line) for line in chosen], effect, s=14, color=colour)
    base = mean(ragged(study.base(lines[0])["entropy"]))[0]
    colder = [line for line in study.temperatures() if line["temperature"] <= 1]
    effect = [100 * (mean(ragged(line["entropy"]))[0] / base - 1) for line in colder]
    harm.plot([kl_of(line) for line in colder], effect, color="grey", label="temperature")
    for name, marker in (("gentle", "v"), ("default", "o"), ("strong", "^")):
        line = study.preset(name, "minimize")
        style = {"marker": marker, "s": 70, "facecolors": "none", "edgecolors": "black", "label": name}
        for axis, x in ((cost, overhead(line)), (harm, kl_of(line))):
            axis.scatter([x], [study.percent(line)[0]], **style)
    cost.set(xlabel="overhead, % of a decoding step's weights (7B)", ylabel="ΔH, %", xlim=(0, 8))
    harm.set(xlabel="KL to base, nats", xlim=(0, 0.3), ylim=(-62, 1))
    cost.legend(frameon=False, fontsize=8)
    harm.legend(frameon=False, fontsize=8)
    save(figure, path)


def kl_of(line: Line) -> float:
    """The mean of KL(base ‖ chosen from), nats."""
    return mean(ragged(line["kl"]))[0]


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
    replays = study.runs("replay")
    presets = [study.preset(name, policy) for policy in ("minimize", "maximize", "switch") for name in PRESETS]
    print("## Presets\n", replay_table(study, presets), sep="\n")
    print("\n## Their temperatures\n", temperature_table(study, presets), sep="\n")
    print("\n## The switch\n", switch_table(study, study.runs("replay", tokens=LONG)), sep="\n")
    print("\n## Grid\n", replay_table(study, replays), sep="\n")
    print("\n## Greedy\n", free_table(study, study.runs("greedy")), sep="\n")
    print("\n## Sampled\n", free_table(study, study.runs("sampled")), sep="\n")
    if options.images:
        options.images.mkdir(parents=True, exist_ok=True)
        curves_figure(study, options.images / "effect-curves.png")
        frontier_figure(study, options.images / "effect-frontier.png")


if __name__ == "__main__":
    main()
