"""With this folder on PYTHONPATH, a worker's poll of Kafka does not return while the file TEST_STUCK is there."""

import os
import sys
import time

if "run" in sys.orig_argv:
    import kafka

    poll = kafka.KafkaConsumer.poll

    def stuck(self, *arguments, **named):
        while os.path.exists(os.environ["TEST_STUCK"]):  # noqa: PTH110 - nothing more than is needed is loaded
            time.sleep(0.1)
        return poll(self, *arguments, **named)

    kafka.KafkaConsumer.poll = stuck
