"""The recogniser on FastAPI and uvicorn (uvloop, httptools), with the batcher that people write for it.

A request's body is pictures in bytes, [n, 48, 320, 3]; the answer is the classes, INT64 [n, 40], as bytes. Handlers put
their rows into an asyncio queue; each worker takes what waits there, up to `--batch` rows, and runs it on a thread of
its own, so that the event loop goes on. It never waits for more rows: whatever came while it computed is the next
batch. Started by `benches/stories/ocr_ways.py`.
"""

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request, Response

ROW = (48, 320, 3)


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="most rows of one call")
    parser.add_argument("--instances", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True, help="of each instance")
    return parser.parse_args()


def session(options):
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    return onnxruntime.InferenceSession(options.model, settings, providers=["CPUExecutionProvider"])


class Batcher:
    def __init__(self, options):
        self.options, self.queue, self.model = options, asyncio.Queue(), session(options)
        self.pool = ThreadPoolExecutor(options.instances)
        self.lock = asyncio.Lock()
        self.left = None

    async def ask(self, rows):
        answer = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((rows, answer))
        return await answer

    async def take(self):
        """What waits, up to the largest batch; the first that does not fit is the first of the next."""
        async with self.lock:
            first = self.left or await self.queue.get()
            self.left = None
            taken, rows = [first], len(first[0])
            while not self.queue.empty():
                following = self.queue.get_nowait()
                if rows + len(following[0]) > self.options.batch:
                    self.left = following
                    break
                taken.append(following)
                rows += len(following[0])
            return taken

    def compute(self, pictures):
        batch = pictures[0] if len(pictures) == 1 else np.concatenate(pictures)
        return self.model.run(["fetch_name_0_index"], {"x": batch})[0]

    async def work(self):
        loop = asyncio.get_running_loop()
        while True:
            taken = await self.take()
            try:
                found = await loop.run_in_executor(self.pool, self.compute, [rows for rows, _ in taken])
            except Exception as error:
                for _, answer in taken:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            start = 0
            for rows, answer in taken:
                if not answer.done():
                    answer.set_result(found[start : start + len(rows)])
                start += len(rows)


def app(options):
    batcher = Batcher(options)

    @asynccontextmanager
    async def life(_):
        workers = [asyncio.create_task(batcher.work()) for _ in range(options.instances)]
        yield
        for worker in workers:
            worker.cancel()

    api = FastAPI(lifespan=life)

    @api.post("/predict")
    async def predict(request: Request):
        pictures = np.frombuffer(await request.body(), np.uint8).reshape(-1, *ROW)
        return Response((await batcher.ask(pictures)).tobytes(), media_type="application/octet-stream")

    return api


if __name__ == "__main__":
    chosen = arguments()
    uvicorn.run(app(chosen), host="127.0.0.1", port=chosen.port, log_level="warning", access_log=False)
