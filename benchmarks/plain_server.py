"""What benchmarks/serving.py compares with: an ASGI function that runs ONNX Runtime per request.

    PLAIN_ONNX=net.onnx uvicorn --app-dir benchmarks plain_server:application

The body is digits, 784 bytes each; the answer is float32 (N, 10), nothing else.
"""

import os

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["PLAIN_ONNX"], options,
                                       providers=["CPUExecutionProvider"])


async def application(scope, receive, send):
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message.get("more_body", False)
    digits = np.frombuffer(body, np.uint8).reshape(-1, 1, 28, 28).astype(np.float32)
    answers = session.run(None, {"image": digits})[0].tobytes()
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", b"%d" % len(answers))]})
    await send({"type": "http.response.body", "body": answers})
