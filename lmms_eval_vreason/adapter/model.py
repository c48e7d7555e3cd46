"""The lmms-eval model classes, one a kind: requests → samples → a run → answers."""

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from transformers import PreTrainedTokenizerBase

from lmms_eval_vreason import __version__
from lmms_eval_vreason.adapter import host, loading
from lmms_eval_vreason.adapter.environment import check_environment
from lmms_eval_vreason.adapter.kinds import KINDS, Kind
from lmms_eval_vreason.adapter.options import Options, parse_options, with_video_defaults
from lmms_eval_vreason.adapter.requests import (
    Reading,
    build_samples,
    carry_over_prompts,
    distinct_settings,
    generation_config,
    overruled,
)
from lmms_eval_vreason.engines.hf.generation import check_call
from lmms_eval_vreason.journal.files import FOLDER, digest
from lmms_eval_vreason.journal.summary import steering_facts, steering_line, steering_warning
from lmms_eval_vreason.journal.writer import Journal
from lmms_eval_vreason.paths import cache_dir
from lmms_eval_vreason.run.batch_size import BatchSize
from lmms_eval_vreason.run.generation import Generator, Setup
from lmms_eval_vreason.run.processes import Team
from lmms_eval_vreason.run.run import Run
from lmms_eval_vreason.run.samples import Sample


class VReasonModel(lmms):  # type: ignore[misc]  # lmms-eval ships no types.
    """A video language model under V-Reason, for every lmms-eval task that asks for text.

    All ``--model_args`` are on the page ``docs/arguments.md``; each is checked before the model loads.

    Attributes:
        kind: Which checkpoints it takes, and what is theirs. Each class of :data:`KINDS` has its own.
        identity: As of :func:`run_identity`.
        setup: What answers the samples.
    """

    is_simple = False
    kind: ClassVar[Kind]

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        with host.exit_on_failure(self.kind.model_id):
            options = parse_options(arguments, self.kind)
            check_environment()
            checkpoint = loading.find_checkpoint(options.model, self.kind)
            self.options = with_video_defaults(options, checkpoint.video)
            self.device, self.accelerator = loading.choose_device(options.model, int(os.environ.get("WORLD_SIZE", 1)))
            if self.accelerator is not None:
                self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
            self.identity = run_identity(self.options, checkpoint, loading.choose_dtype(options.model, self.device))
            self._journal = self._open_journal()
            self._model = loading.load_model(checkpoint, options.model, self.device)
            if options.model.device_map:
                # Where the prompt's tokens go in; the rest of the model may lie elsewhere.
                self.device = torch.device(self._model.get_input_embeddings().weight.device)  # type: ignore[arg-type]
            # Refuses what cannot be steered.
            self.processor = loading.load_processor(checkpoint, self.kind, self._model, options)
            self.tokenizer: PreTrainedTokenizerBase = self.processor.tokenizer
            how = options.method, options.thinking, self.device, options.model.positions
            self.setup = Setup(self._model, self.processor, *how)
            self._batch_size = BatchSize(options.model.batch_size, options.model.max_batch_size, self.device)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> Self:
        """Called by lmms-eval's command. Unlike lmms-eval's own, it accepts ``batch_size`` in ``--model_args``."""
        with host.exit_on_failure(cls.kind.model_id):
            arguments = host.model_arguments(arg_string, additional_config or {})
        return cls(**arguments)

    @property
    def batch_size(self) -> int:
        return self._batch_size.now

    @property
    def batch_sizes(self) -> dict[str, int]:
        """What lmms-eval notes in its results: with ``auto`` the size in the end."""
        return {"generate_until": self._batch_size.now}

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers all requests, in their order; a finished one is in the journal before the next begins.

        Each of several processes has to call it: they share the work, regardless of which one received a request.
        """
        with host.exit_on_failure(self.kind.model_id):
            samples = self.samples(requests)
            run = Run(Generator(self.setup), self.options, self._journal, self._batch_size, self._team())
            try:
                with host.terminable():
                    run.answer(samples, self.identity)
            except BaseException as error:
                if line := run.stopped(error):
                    print(f"{self.kind.model_id}: {line}", file=sys.stderr)
                raise
            run.team.close()
            if run.team.rank == 0:
                self._sum_up(run)
            return [_result(run.ledger.records.get(index)) for index in range(len(requests))]

    def samples(self, requests: list[Instance]) -> list[Sample]:
        """The requests as a run answers them. Their generation settings are checked before the first video is read.

        Raises:
            ValueError: A generation setting that is unknown, out of range, or does not go with the method.
        """
        special = [token for token in self.processor.special.values() if token.startswith("<|")]
        named = host.named_generation_settings()
        reading = Reading(self.options.thinking, [*special, *self.processor.placeholders], named, self.kind.system)
        if self.options.thinking.task_prompt is not None:
            carry_over_prompts(requests, self.options.thinking.task_prompt)
        settings = distinct_settings(requests, reading)
        for each in settings:
            generation_config(each.generation)
            check_call(self._model, None, each.generation)
        for line in overruled(named, settings, self.options.thinking) if self._rank == 0 else ():
            logger.warning(line)
        return build_samples(requests, self.task_dict, reading)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("V-Reason changes how text is generated: choose a task of output_type generate_until")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError(
            f"{self.kind.model_id} answers one round: choose a task of output_type generate_until"
        )

    def _team(self) -> Team:
        # With a response cache lmms-eval may hand a process no requests at all, without a call: nobody waits for it.
        if self._world_size == 1 or host.flag("--use_cache") is not None:
            return Team.alone()
        return Team.connect(self._rank, self._world_size)

    def _sum_up(self, run: Run) -> None:
        for line in run.ledger.failures():
            logger.warning(line)
        method = self.options.method
        facts = steering_facts(run.ledger.everybody, policy=method.policy)
        logger.info(steering_line(facts))
        if warning := steering_warning(facts):
            logger.warning(warning)
        if self._journal is not None:
            logger.info(f"Journal (thinking, traces, timings and errors of every sample): {self._journal.folder}")

    def _open_journal(self) -> Journal | None:
        options, given = self.options, self.options.run.journal
        if given == "off":
            return None
        run, output = digest(self.identity), host.output_folder()
        if given:
            folder = Path(given).expanduser()
        else:
            folder = output / FOLDER if output is not None else cache_dir() / "journals" / run[:12]
        header = {
            "run": run,
            "package": __version__,
            "model_args": options.given,
            "checkpoint": options.model.pretrained,
            "method": asdict(options.method),
            "video": options.video.changing_answers(),
            "thinking": options.thinking.changing_answers(),
            "versions": {name: version(name) for name in ("torch", "transformers", "lmms_eval")},
            "device": str(self.device),
            "settings": self.identity,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return Journal(folder, header, rank=self._rank, resume=options.run.resume)


# One class a kind: lmms-eval looks each up in this module by its name.
for _kind in KINDS.values():
    globals()[_kind.class_name] = type(_kind.class_name, (VReasonModel,), {"__module__": __name__, "kind": _kind})


def run_identity(options: Options, checkpoint: loading.Checkpoint, dtype: str) -> dict[str, Any]:
    """All that changes a sample's answer besides the sample itself, and nothing else: a run's part of the resume key.

    Args:
        dtype: The one in force.
    """
    identity = {"package": __version__, "checkpoint": checkpoint.identity, "dtype": dtype, **options.changing_answers()}
    if options.model.positions == "transformers":
        identity["positions"] = f"transformers {version('transformers')}"
    return identity


def _result(record: dict[str, Any] | None) -> GenerationResult:
    if record is None:  # lmms-eval's padding.
        return GenerationResult("")
    counts = record["tokens"]
    return GenerationResult(record["text"], TokenCounts(counts["input"], counts["output"], counts["thinking"]))
