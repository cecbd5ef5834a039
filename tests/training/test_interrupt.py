"""Ctrl-C."""

import signal
import threading

import pytest

from minivit.training.interrupt import Interrupt, Interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_stops(number, capfd):
    with Interrupt() as interrupt:
        interrupt.check()
        signal.raise_signal(number)
        assert "Once more stops at once" in capfd.readouterr().err
        with pytest.raises(Interrupted, match=f"^interrupted by {number.name}$"):
            interrupt.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_handlers_come_back():
    def handler(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, handler), signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyError), Interrupt():
            assert signal.getsignal(signal.SIGTERM) is not handler
            raise KeyError
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGINT) is before[1]
    finally:
        signal.signal(signal.SIGTERM, before[0])


def test_items_are_checked_one_by_one(capfd):
    seen = []
    with Interrupt() as interrupt, pytest.raises(Interrupted):
        for item in interrupt.checked(range(5)):
            seen.append(item)
            if item == 2:
                signal.raise_signal(signal.SIGINT)
    assert seen == [0, 1, 2]


def test_another_thread_may_train_too():
    handler, during = signal.getsignal(signal.SIGINT), []

    def work():
        with Interrupt() as interrupt:
            interrupt.check()
            during.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert during == [handler]
