"""Differences between replicas' files are found where they were planted; equal ones and unfinished tails are let pass."""

import pathlib
import sys
import tempfile
import unittest

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]

import replicas  # noqa: E402
from harness.wire import batch, record  # noqa: E402

LOG = "00ff-0"


def log(*values, producer=None):
    """One batch of one record for every value, at offsets 0, 1, 2, ..."""
    return [batch([v], base=n, producer=producer or (7, 0, n)) for n, v in enumerate(values)]


class Replicas(unittest.TestCase):
    def setUp(self):
        self.root = tempfile.TemporaryDirectory()
        self.addCleanup(self.root.cleanup)
        self.directories = {}

    def replica(self, name, *segments, key=LOG):
        """Every segment a list of batches."""
        folder = pathlib.Path(self.root.name) / name / "logs" / key
        folder.mkdir(parents=True)
        offset = 0
        for number, segment in enumerate(segments):
            (folder / f"{offset:020}.{number:016x}.log").write_bytes(b"".join(segment))
            offset += len(segment)
        self.directories[name] = pathlib.Path(self.root.name) / name

    def names(self, high=None, compacted=()):
        return [name for name, _ in replicas.compare(self.directories, {LOG: high} if high is not None else {}, compacted)]

    def test_equal_replicas_whose_segments_end_elsewhere(self):
        whole = log(b"a", b"b", b"c", b"d")
        self.replica("one", whole)
        self.replica("two", whole[:1], whole[1:])
        self.assertEqual([], self.names(high=4))

    def test_another_record(self):
        self.replica("one", log(b"a", b"b", b"c"))
        self.replica("two", log(b"a", b"x", b"c"))
        self.assertEqual(["replica-differs"], self.names(high=3))

    def test_bytes_changed_under_the_same_crc(self):
        whole = b"".join(log(b"a", b"b"))
        self.replica("one", [whole])
        self.replica("two", [whole[:-2] + b"x" + whole[-1:]])
        self.assertEqual(["replica-differs"], self.names(high=2))

    def test_what_lies_beyond_the_high_watermark_may_differ(self):
        self.replica("one", log(b"a", b"b", b"c"))
        self.replica("two", log(b"a", b"b", b"x"))
        self.replica("three", log(b"a", b"b"))
        self.assertEqual([], self.names(high=2))
        self.assertEqual(["replica-behind", "replica-differs"], sorted(self.names(high=3)))

    def test_without_a_high_watermark_the_common_part_counts(self):
        self.replica("one", log(b"a", b"b", b"c"))
        self.replica("two", log(b"a", b"b"))
        self.assertEqual([], self.names())
        self.replica("three", log(b"x"))
        self.assertEqual(["replica-differs"], self.names())

    def test_a_missing_replica(self):
        self.replica("one", log(b"a"))
        self.replica("two", log(b"a"), key="other-0")
        self.assertEqual(["replica-missing"], self.names(high=1))

    def test_who_is_to_have_no_replica_lacks_none(self):
        self.replica("one", log(b"a"))
        self.replica("two", log(b"a"), key="other-0")
        found = [replicas.compare(self.directories, {LOG: 1}, holders={LOG: held}) for held in ({"one"}, {"one", "two"})]
        self.assertEqual([[], ["replica-missing"]], [[name for name, _ in anomalies] for anomalies in found])

    def test_what_a_truncation_cut_off_is_not_part_of_the_log(self):
        whole = log(b"a", b"b", b"c")
        self.replica("one", whole)
        # The first segment still holds what was truncated; the next one begins where it was cut.
        folder = pathlib.Path(self.root.name) / "two" / "logs" / LOG
        folder.mkdir(parents=True)
        (folder / f"{0:020}.{1:016x}.log").write_bytes(b"".join(log(b"a", b"x", b"y", b"z")))
        (folder / f"{1:020}.{2:016x}.log").write_bytes(b"".join(whole[1:]))
        self.directories["two"] = folder.parents[1]
        self.assertEqual([], self.names(high=3))

    def test_a_gap(self):
        whole = log(b"a", b"b", b"c")
        self.replica("one", whole[:1] + whole[2:])
        self.assertEqual(["replica-gap"], self.names(high=3))

    def test_a_sequence_that_was_appended_twice(self):
        self.replica("one", log(b"a", b"a", producer=(7, 0, 4)))
        self.assertEqual(["duplicate-sequence"], self.names(high=2))
        # Producers without a number have no sequence to repeat.
        self.directories = {}
        self.replica("two", log(b"a", b"a", producer=(-1, -1, -1)))
        self.assertEqual([], self.names(high=2))

    def test_a_cut_last_batch_is_not_part_of_the_log(self):
        whole = log(b"a", b"b")
        self.replica("one", whole)
        self.replica("two", [whole[0], whole[1][:-3]])
        self.assertEqual([], self.names(high=1))
        self.assertEqual(["replica-behind"], self.names(high=2))

    def compacted_replica(self, name, *records):
        """Every record (offset, key, value) in a batch of its own."""
        self.replica(name, [batch([value], base=offset, payload=record(0, value, key)) for offset, key, value in records])

    def test_replicas_of_a_compacted_log_may_hold_different_records_of_which_the_last_are_the_same(self):
        self.compacted_replica("all", (0, b"a", b"1"), (1, b"b", b"2"), (2, b"a", b"3"), (3, b"c", None), (4, b"d", b"4"))
        self.compacted_replica("some", (1, b"b", b"2"), (2, b"a", b"3"), (4, b"d", b"4"))
        self.compacted_replica("behind", (0, b"a", b"1"), (1, b"b", b"2"))
        self.assertEqual([], self.names(compacted={"00ff"}))
        self.assertIn("replica-gap", self.names())

    def test_a_compaction_that_took_the_last_record_of_a_key(self):
        self.compacted_replica("all", (0, b"a", b"1"), (1, b"b", b"2"), (2, b"a", b"3"))
        self.compacted_replica("lost", (0, b"a", b"1"), (2, b"a", b"3"))
        self.assertEqual(["replica-differs"], self.names(compacted={"00ff"}))

    def test_a_compacted_log_that_kept_an_older_record_or_another_value(self):
        self.compacted_replica("all", (0, b"a", b"1"), (1, b"a", b"2"), (2, b"b", b"3"))
        self.compacted_replica("older", (0, b"a", b"1"), (2, b"b", b"3"))
        self.assertEqual(["replica-differs"], self.names(compacted={"00ff"}))
        self.directories.pop("older")
        self.compacted_replica("other", (1, b"a", b"x"), (2, b"b", b"3"))
        self.assertIn("replica-differs", self.names(compacted={"00ff"}))


if __name__ == "__main__":
    unittest.main()
