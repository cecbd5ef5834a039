import threading

import numpy as np
import pytest

from minivit.shared import batch_total, is_cut, is_first_piece, sharing


def state():
    return batch_total()(np.ones(1)).tolist(), is_cut(), is_first_piece()


def test_sharing_holds_for_one_thread_and_until_its_end():
    seen = []
    alone = [1.0], False, True
    with sharing(lambda array: 3 * array, first=False):
        thread = threading.Thread(target=lambda: seen.append(state()))
        thread.start()
        thread.join()
        with sharing(lambda array: 5 * array, first=True):
            assert state() == ([5.0], True, True)
        assert state() == ([3.0], True, False)
    assert seen == [alone] and state() == alone
    with pytest.raises(KeyError), sharing(lambda array: array, first=False):
        raise KeyError
    assert state() == alone
