"""Serves Hugging Face's GPT-2 with FastAPI, as its users write it.

A plain endpoint, so that FastAPI runs each request in a thread of its pool;
`model.generate` on one prompt, in inference mode, with the cache. Settings,
the only argument: a task of serving_task.py; parallel, requests that generate
at a time, the others wait; threads, of torch.
"""

import json
import pathlib
import socket
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from experiments.benchmarks.workers.decode_transformers_worker import (
    build_model,
)


class Completion(BaseModel):
    prompt: list[int]
    max_tokens: int


def build_app(settings):
    torch.set_num_threads(settings["threads"])
    model = build_model(settings["task"])
    places = threading.Semaphore(settings["parallel"])
    app = FastAPI()

    @app.post("/v1/completions")
    def complete(body: Completion):
        token_ids = torch.tensor([body.prompt])
        with places, torch.inference_mode():
            rows = model.generate(
                token_ids,
                attention_mask=torch.ones_like(token_ids),
                max_new_tokens=body.max_tokens,
                do_sample=False,
            )
        new_ids = rows[0, token_ids.shape[1] :].tolist()
        return {
            "choices": [{"token_ids": new_ids}],
            "usage": {"completion_tokens": len(new_ids)},
        }

    return app


def main(settings):
    app = build_app(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
