"""``qwen2_5_vl_vreason``, the lmms-eval model class: requests → samples → batches → completions → answers."""

import os
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger

from lmms_eval_vreason import __version__
from lmms_eval_vreason.adapter.host import exit_on_failure, has_response_cache, output_folder, terminable
from lmms_eval_vreason.adapter.loading import (
    Checkpoint,
    check_environment,
    choose_device,
    choose_dtype,
    find_checkpoint,
    load_model,
    load_processor,
)
from lmms_eval_vreason.adapter.options import Options, parse_options
from lmms_eval_vreason.journal.files import FOLDER, Journal, digest
from lmms_eval_vreason.journal.summary import steering_facts, steering_line, steering_warning
from lmms_eval_vreason.paths import cache_dir
from lmms_eval_vreason.run.batch_size import BatchSize, memory_of
from lmms_eval_vreason.run.generation import Generator
from lmms_eval_vreason.run.processes import Team
from lmms_eval_vreason.run.run import Run


class Qwen2_5_VL_VReason(lmms):
    """Qwen2.5-VL under V-Reason, for every lmms-eval task that asks for text.

    All ``--model_args`` are documented in the README and in :mod:`lmms_eval_vreason.adapter.options`; each is
    checked before the model loads.
    """

    is_simple = False

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        with exit_on_failure():
            self.options: Options = parse_options(arguments)
            check_environment()
            checkpoint = find_checkpoint(self.options.model)
            world_size = int(os.environ.get("WORLD_SIZE", 1))
            self.device, self.accelerator = choose_device(self.options.model, world_size)
            if self.accelerator is not None:
                self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
            dtype = choose_dtype(self.options.model, self.device)
            self._run_settings = _run_settings(self.options, checkpoint, dtype)
            self._journal = self._open_journal()
            self._model = load_model(checkpoint, self.options.model, self.device)
            if self.options.model.device_map:
                # Where the prompt's tokens go in; the rest of the model may lie elsewhere.
                self.device = self._model.get_input_embeddings().weight.device
            self.processor = load_processor(checkpoint)
            asked = self.options.model
            self._batch_size = BatchSize(asked.batch_size, asked.max_batch_size, memory_of(self._model))

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    @property
    def batch_size(self) -> int:
        return self._batch_size.now

    @property
    def batch_sizes(self) -> dict[str, int]:
        """What lmms-eval notes in its results: with ``auto`` the largest size that has worked."""
        return {"generate_until": self._batch_size.found or self._batch_size.now}

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers all requests, in their order; a finished one is in the journal before the next begins.

        Of several processes each has to call it: they share the work, whoever's requests it is.
        """
        with exit_on_failure():
            return self._generate_until(requests)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("V-Reason changes how text is generated: choose a task of output_type generate_until")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("qwen2_5_vl_vreason answers one round: choose a task of output_type generate_until")

    def _generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        generator = Generator(self._model, self.processor, self.options.method, self.options.thinking, self.device)
        run = Run(generator, self.options, self._journal, self._run_settings, self._batch_size, self._team())
        try:
            with terminable():
                run.answer(requests, self.task_dict)
        except BaseException:
            self._say_how_to_go_on(run)
            raise
        run.team.close()
        if run.team.rank == 0:
            self._sum_up(run)
        return [_result(run.text(index), run.records.get(index)) for index in range(len(requests))]

    def _team(self) -> Team:
        if self._world_size == 1 or has_response_cache():
            return Team.alone()
        return Team.connect(self._rank, self._world_size)

    def _sum_up(self, run: Run) -> None:
        for line in run.failures():
            logger.warning(line)
        if self._batch_size.auto and self._batch_size.found:
            logger.info(f"Batch size auto: up to {self._batch_size.found} samples were decoded together")
        if run.padding.padded:
            logger.info(f"Padding: {run.padding.share:.1%} of the prompts' tokens")
        method = self.options.method
        facts = steering_facts(run.everybody, policy=method.policy, update_every=method.update_every)
        logger.info(steering_line(facts))
        if warning := steering_warning(facts):
            logger.warning(warning)
        if self._journal is not None:
            logger.info(f"Journal (thinking, traces, timings and errors of every sample): {self._journal.folder}")

    def _say_how_to_go_on(self, run: Run) -> None:
        if self._journal is not None:
            print(
                f"qwen2_5_vl_vreason: stopped; {run.finished} finished samples are in {self._journal.folder}. "
                "Run the same command again to go on from there",
                file=sys.stderr,
            )

    def _open_journal(self) -> Journal | None:
        options, given = self.options, self.options.run.journal
        if given == "off":
            return None
        run, output = digest(self._run_settings), output_folder()
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
            "versions": {name: version(name) for name in ("torch", "transformers", "lmms_eval")},
            "device": str(self.device),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        return Journal(folder, header, rank=self._rank, resume=options.run.resume)


def _run_settings(options: Options, checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """All that changes a sample's answer besides the sample itself, and nothing else."""
    return {
        "package": __version__,
        "checkpoint": checkpoint.identity,
        "dtype": dtype,
        "attn_implementation": options.model.attn_implementation,
        "method": asdict(options.method),
        "thinking": {k: v for k, v in asdict(options.thinking).items() if k != "return_thinking"},
        "video": {k: v for k, v in asdict(options.video).items() if k != "read_ahead"},
    }


def _result(text: str, record: dict[str, Any] | None) -> GenerationResult:
    if record is None:
        return GenerationResult(text)
    counts = record["tokens"]
    return GenerationResult(text, TokenCounts(counts["input"], counts["output"], counts["thinking"]))
