import signal
import threading

import pytest

from feedback_transformer_pytorch.training.interrupt import SIGNALS, Stopped, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request_and_a_second_one_an_order(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        stop.check()
        signal.raise_signal(number)
        with pytest.raises(Stopped) as raised:
            stop.check()
        assert raised.value.signal == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_it_does_nothing() -> None:
    errors: list[Exception] = []

    def enter() -> None:
        try:
            with StopRequest() as stop:
                stop.check()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert errors == []
