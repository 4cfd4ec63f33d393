"""What of an audit is done already: kept by content, damaged files made again, its time counted."""

import json

import numpy as np

from bn_vuln.auditing.pieces import Clock, Pieces, packed, packed_arrays, unpacked, unpacked_arrays
from bn_vuln.records import digests


def test_a_piece_is_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"x": 1}

    for _ in range(3):
        assert Pieces(tmp_path, {"model": "a"}, Clock(None)).get("one", compute) == {"x": 1}
    assert len(calls) == 1
    Pieces(tmp_path, {"model": "b"}, Clock(None)).get("one", compute)  # of another model
    assert len(calls) == 2


def test_without_a_folder_nothing_is_kept():
    pieces = Pieces(None, {}, Clock(None))
    assert [pieces.get("one", lambda k=k: {"x": k})["x"] for k in (1, 2)] == [1, 2]


def test_a_damaged_piece_is_made_again(tmp_path):
    Pieces(tmp_path, {}, Clock(None)).get("one", lambda: {"x": 1})
    (path,) = (tmp_path / "pieces").glob("*/*.json")
    whole = json.loads(path.read_text())
    others = ({"value": {"x": 3}}, {"value": 3}, {"value": {}}, {"sha256": ""}, {"seconds": "1"}, {"seconds": None})
    for damage in ("", "{", "[]", "{}", *(json.dumps(whole | other) for other in others)):
        path.write_text(damage)
        clock = Clock(None)
        assert Pieces(tmp_path, {}, clock).get("one", lambda: {"x": 2}) == {"x": 2}
        assert clock.before == 0


def test_the_clock_counts_earlier_runs(tmp_path):
    Pieces(tmp_path, {}, Clock(100)).get("one", lambda: {"x": 1})
    (path,) = (tmp_path / "pieces").glob("*/*.json")
    kept = {**json.loads(path.read_text()), "seconds": 60.0}
    del kept["sha256"]
    path.write_text(json.dumps(digests.with_digest(kept)))
    clock = Clock(100)
    assert 99 < clock.left <= 100
    Pieces(tmp_path, {}, clock).get("one", dict)
    assert 39 < clock.left <= 40
    assert Clock(None).left == np.inf


def test_outcomes_as_text():
    mask = np.array([True, False, False, True])
    assert packed(mask) == "1001"
    np.testing.assert_array_equal(unpacked("1001"), mask)


def test_images_as_text():
    images = np.random.default_rng(0).normal(size=(2, 3, 3, 1)).astype(np.float32)
    (found,) = unpacked_arrays(packed_arrays({"clean": images})).values()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, images)
