"""Documents as lmms-eval hands them to the model class."""

import copy

from lmms_eval.api.instance import Instance


def about_video(doc):
    """The messages of a document with a ``video`` and a ``text``."""
    video = {"type": "video", "url": doc["video"]}
    return [{"role": "user", "content": [video, {"type": "text", "text": doc["text"]}]}]


def instances(model, docs, settings, messages=about_video, *, rank=0, size=1):
    """The requests on ``docs`` that process ``rank`` of ``size`` gets; ``model`` gets the documents."""
    model.task_dict = {"task": {"test": docs}}
    return [
        Instance(
            request_type="generate_until",
            arguments=("", messages, copy.deepcopy(settings), index, "task", "test"),
            idx=index,
            metadata={"task": "task", "doc_id": index, "repeats": 1},
        )
        for index in range(rank, len(docs), size)
    ]


def answered(model, requests):
    """[document, text, token counts] of each request."""
    results = model.generate_until(requests)
    return [
        [r.args[3], result.text, result.token_counts.to_dict()] for r, result in zip(requests, results, strict=True)
    ]
