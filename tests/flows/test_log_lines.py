"""Log lines of a service: JSON that is readable line by line, without texts of defects, and not too many."""

import io
import json
import logging

from flows.log_lines import JsonLines, OncePerSecond


def logger_with(handler: logging.Handler) -> logging.Logger:
    logger = logging.getLogger("test.log_lines")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    return logger


def test_a_line_is_one_json_object_and_a_defect_tells_no_values() -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    log = logger_with(handler)
    log.warning("partition %d: %s", 3, "two\nlines\x1b[31m\x9b")
    try:
        dict[str, int]()["card 4711"]
    except KeyError as error:
        log.error("partition %d: publishing failed: %s", 3, type(error).__name__, exc_info=error)
    first, second = map(json.loads, written.getvalue().splitlines())
    assert (first["level"], first["logger"], first["message"]) == (
        "warning",
        "test.log_lines",
        "partition 3: two\nlines\ufffd[31m\ufffd",
    )
    assert second["error"] == "KeyError"
    assert second["raised"][0].endswith("test_a_line_is_one_json_object_and_a_defect_tells_no_values")
    assert "4711" not in written.getvalue()


def test_a_repeating_fault_is_one_line_a_second_for_each_partition() -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    only = OncePerSecond(every_s=1_000.0)
    handler.addFilter(only)
    log = logger_with(handler)

    def fault(partition: int, why: int) -> None:
        log.warning("partition %d: fault %d", partition, why)

    for n in range(100):
        fault(n % 2, n)
        log.info("claimed %d", n)
    lines = written.getvalue().splitlines()
    assert [line for line in lines if "fault" in line] == ["partition 0: fault 0", "partition 1: fault 1"]
    assert sum("claimed" in line for line in lines) == 100
    only._every_s = 0.0
    fault(0, 100)
    assert written.getvalue().splitlines()[-1] == "partition 0: fault 100 (49 similar lines held back)"
