"""Every anomaly is found where it was planted, and what only looks like one is let pass. No broker, nothing installed.

Not here: replicas' files (see `test_replicas`).
"""

import pathlib
import random
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import checker  # noqa: E402

T = "t"


class Story:
    """A history told one operation after another; every step takes a second."""

    def __init__(self):
        self.events, self.clock, self.number = [], 0, 0

    def tick(self):
        self.clock += 10**9
        return self.clock

    def begin(self, process, f, value):
        self.number += 1
        self.events.append({"op": self.number, "process": process, "type": "invoke", "f": f, "time": self.tick(), "value": value})
        return self.number

    def end(self, op, type, value=None, **more):
        begun = next(e for e in self.events if e["op"] == op)
        event = {"op": op, "process": begun["process"], "type": type, "f": begun["f"], "time": self.tick(), **more}
        self.events.append(event if value is None else {**event, "value": value})

    def op(self, process, type, f, asked, answer=None, **more):
        self.end(self.begin(process, f, asked), type, answer, **more)
        return self

    def send(self, *pairs, type="ok", process="w", partition=0):
        """Pairs of (value, offset)."""
        asked = [["send", T, partition, None, v] for v, _ in pairs]
        return self.op(process, type, "send", asked, [["send", T, partition, o, v] for v, o in pairs])

    def poll(self, *pairs, type="ok", process="r", partition=0, **more):
        return self.op(process, type, "poll", None, [["poll", T, partition, o, v] for v, o in pairs], **more)

    def assign(self, *positions, process="r"):
        return self.op(process, "ok", "assign", [[T, p, at] for p, at in positions])

    def commit(self, offset, type="ok", process="m"):
        return self.op(process, type, "commit", [["g", T, 0, offset]])

    def committed(self, offset):
        return self.op("poller", "ok", "committed", [["g", T, 0, None]], [["g", T, 0, offset]])

    def offsets(self, start, end):
        return self.op("poller", "ok", "offsets", None, [[T, 0, start, end]])

    def loss(self, kept, topic=T, began=None):
        self.number += 1
        value = {"began": self.tick() if began is None else began, "kept": [[topic, 0, kept]]}
        self.events.append({"op": self.number, "process": "nemesis", "type": "info", "f": "loss", "time": self.tick(), "value": value})
        return self

    def final(self, complete=True):
        return self.op("final", "ok", "final", None, {"complete": complete})

    def names(self):
        return set(checker.check(self.events).bad)


def three():
    """Values 1, 2, 3 at offsets 0, 1, 2, acknowledged."""
    return Story().send((1, 0)).send((2, 1)).send((3, 2))


class Checker(unittest.TestCase):
    def finds(self, name, story, only=True):
        found = story.names()
        self.assertIn(name, found)
        if only:
            self.assertEqual({name}, found)

    def passes(self, story):
        verdict = checker.check(story.events)
        self.assertEqual({}, verdict.bad)
        return verdict

    def test_a_clean_history_of_two_partitions_and_two_readers(self):
        story = three().send((1, 0), (2, 1), process="v", partition=1).assign((0, 0), (1, 0))
        story.poll((1, 0), (2, 1)).poll((3, 2)).poll((1, 0), (2, 1), partition=1)
        story.offsets(0, 3).commit(2).committed(2).final()
        self.passes(story)

    def test_inconsistent_offsets(self):
        self.finds("inconsistent-offsets", three().poll((1, 0), process="a").poll((9, 0), process="b"), only=False)
        # Also when the acknowledgement says otherwise than a read.
        self.finds("inconsistent-offsets", Story().send((1, 0)).send((2, 1)).poll((2, 0)), only=False)
        self.passes(three().poll((1, 0), process="a").poll((1, 0), process="b"))

    def test_offsets_may_be_sparse(self):
        self.passes(Story().send((1, 0)).send((2, 5)).poll((1, 0), (2, 5)).final())

    def test_duplicate(self):
        self.finds("duplicate", three().poll((1, 0), (2, 1), (3, 2), (2, 3)), only=False)
        self.passes(three().poll((1, 0), (2, 1), (3, 2)).assign((0, 0)).poll((1, 0)))
        # The same value in another partition is another record.
        self.passes(three().send((2, 0), partition=1).poll((2, 0), partition=1).poll((1, 0), (2, 1), (3, 2)))

    def test_aborted_read(self):
        self.finds("G1a", Story().send((1, None), type="fail").poll((1, 0)))
        self.passes(Story().send((1, None), type="info").poll((1, 0)))

    def test_aborted_read_of_one_record_among_others(self):
        story = Story()
        story.op("w", "info", "send", [], [["send", T, 0, 0, 1, "ok"], ["send", T, 0, None, 2, "fail"]])
        self.finds("G1a", story.poll((1, 0), (2, 1)))

    def test_phantom_read(self):
        self.finds("phantom-read", three().poll((1, 0), (2, 1), (3, 2), (4, 3)))
        self.passes(three().poll((1, 0), (2, 1), (3, 2)))

    def test_precommitted_read(self):
        own = [["send", T, 0, 0, 1], ["poll", T, 0, 0, 1]]
        self.finds("precommitted-read", Story().op("w", "ok", "txn", own, own))
        others = [["poll", T, 0, 0, 1], ["send", T, 0, 1, 2]]
        self.passes(Story().send((1, 0)).op("v", "ok", "txn", others, others))

    def test_lost_write(self):
        # 3 is seen, 2 stands before it and nobody ever sees it.
        self.finds("lost-write", three().poll((1, 0)).assign((0, 2)).poll((3, 2)))
        # What lies beyond everything seen is not proven lost.
        self.passes(three().poll((1, 0)))
        # A write that may not have happened is not missed.
        self.passes(Story().send((1, 0)).send((2, None), type="info").send((3, 2)).poll((1, 0), (3, 2)))

    def test_unseen(self):
        self.finds("unseen", three().poll((1, 0), (2, 1)).final())
        self.finds("final-read-incomplete", three().poll((1, 0), (2, 1), (3, 2)).final(complete=False))
        self.passes(three().poll((1, 0), (2, 1), (3, 2)).final())
        self.passes(three().send((4, None), type="info").send((5, None), type="fail").poll((1, 0), (2, 1), (3, 2)).final())
        self.passes(three().poll((1, 0), (2, 1)))

    def test_unseen_over_time(self):
        counts = self.passes(three().poll((1, 0), (2, 1), (3, 2)).final()).counts
        self.assertEqual(0, counts["unseen at the end"])
        self.assertEqual(3, counts["unseen at most, by the second"])

    def test_skip_and_step_back_within_a_poll(self):
        self.finds("int-poll-skip", three().poll((1, 0), (2, 1), process="a").poll((1, 0), (3, 2)))
        self.finds("int-nonmonotonic-poll", three().poll((1, 0), (3, 2), (2, 1)), only=False)
        self.passes(three().poll((1, 0), (2, 1), (3, 2)))

    def test_a_rebalance_excuses_the_partitions_it_moved(self):
        story = three().op("r", "ok", "subscribe", [T]).poll((1, 0), (2, 1), process="a")
        self.passes(story.poll((1, 0), (3, 2), (1, 0), rebalanced=[[T, 0]]))
        other = three().op("r", "ok", "subscribe", [T]).poll((1, 0), (2, 1), process="a")
        self.finds("int-poll-skip", other.poll((1, 0), (3, 2), rebalanced=[[T, 7]]))

    def test_step_back_within_a_send(self):
        self.finds("int-nonmonotonic-send", Story().send((1, 1), (2, 0)))
        # Another producer's record in between is a skip, which Kafka allows.
        verdict = self.passes(Story().send((1, 0), (3, 2)).send((2, 1), process="v").poll((1, 0), (2, 1), (3, 2)))
        self.assertIn("int-send-skip", verdict.anomalies)

    def test_skip_and_step_back_between_polls(self):
        self.finds("poll-skip", three().assign((0, 0)).poll((1, 0)).poll((3, 2)).poll((2, 1), process="a"))
        self.finds("nonmonotonic-poll", three().assign((0, 0)).poll((1, 0), (2, 1), (3, 2)).poll((2, 1)))
        self.passes(three().assign((0, 0)).poll((1, 0)).poll((2, 1)).poll((3, 2)))

    def test_a_seek_is_no_step_back_but_a_kept_position_binds(self):
        self.passes(three().assign((0, 0)).poll((1, 0), (2, 1)).assign((0, 0)).poll((1, 0)))
        self.finds("nonmonotonic-poll", three().assign((0, 0)).poll((1, 0), (2, 1)).assign((0, None)).poll((1, 0)))
        # Away and back again: the position was given up.
        self.passes(three().assign((0, 0)).poll((1, 0), (2, 1)).assign((1, None)).assign((0, None)).poll((1, 0)))

    def test_a_group_may_skip_and_repeat_between_polls(self):
        self.passes(three().op("r", "ok", "subscribe", [T]).poll((1, 0)).poll((3, 2)).poll((2, 1)))

    def test_step_back_between_sends(self):
        self.finds("nonmonotonic-send", Story().send((1, 1)).send((2, 0)))
        self.passes(Story().send((1, 1)).send((2, 0), process="v"))
        # A send of unknown outcome that was seen too late was still sent first.
        self.finds("nonmonotonic-send", Story().send((1, None), type="info").send((2, 0)).poll((2, 0), (1, 1)))

    def test_end_of_the_log_went_back(self):
        self.finds("high-watermark-went-back", three().offsets(0, 3).offsets(0, 2))
        self.finds("high-watermark-went-back", three().offsets(0, 2))
        self.finds("high-watermark-went-back", Story().send((1, None), type="info").poll((1, 0)).offsets(0, 0))
        self.passes(three().offsets(0, 3).offsets(0, None).offsets(0, 3).offsets(0, 5))

    def test_an_overlapping_question_may_be_answered_from_before(self):
        story = Story()
        asked = story.begin("poller", "offsets", None)
        story.send((1, 0))
        story.end(asked, "ok", [[T, 0, 0, 0]])
        self.passes(story)

    def test_start_of_the_log_went_back(self):
        self.finds("log-start-went-back", Story().offsets(5, 9).offsets(4, 9))
        self.passes(Story().offsets(5, 9).offsets(5, 9).offsets(7, 9))

    def test_committed_offset_went_back(self):
        self.finds("committed-offset-went-back", Story().commit(3).commit(5).committed(3))
        self.finds("committed-offset-went-back", Story().commit(3).committed(None))
        self.finds("committed-offset-went-back", Story().commit(3).commit(5, type="info").committed(5).committed(3))
        self.passes(Story().commit(3).committed(3).commit(5).committed(5))

    def test_an_explicit_lower_commit_excuses_a_lower_answer(self):
        self.passes(Story().commit(5).commit(3).committed(3))
        self.passes(Story().commit(5).commit(3, type="info").committed(3))
        self.passes(Story().commit(5).commit(3, type="info").committed(5))
        self.finds("committed-offset-went-back", Story().commit(5).commit(3, type="fail").committed(3), only=False)

    def test_commits_at_the_same_time_have_no_order(self):
        story = Story()
        first, second = (story.begin(m, "commit", [["g", T, 0, at]]) for m, at in (("m", 5), ("n", 3)))
        story.end(second, "ok")
        story.end(first, "ok")
        self.passes(story.committed(3))

    def test_committed_offset_from_nowhere(self):
        self.finds("committed-offset-from-nowhere", Story().commit(3).committed(7))
        self.passes(Story().commit(3).commit(7, type="info").committed(7))

    def test_an_accepted_loss_covers_what_was_known_beyond_what_is_kept(self):
        def day(kept):
            story = three().poll((1, 0), (2, 1), (3, 2)).offsets(0, 3)
            story = story if kept is None else story.loss(kept)
            return story.offsets(0, 1).send((4, 1), process="v").poll((1, 0), (4, 1)).final()
        verdict = self.passes(day(kept=1))
        self.assertEqual(2, verdict.counts["acknowledged records that an accepted loss covers"])
        self.assertEqual({"inconsistent-offsets", "high-watermark-went-back", "nonmonotonic-poll"}, day(kept=None).names())
        self.finds("inconsistent-offsets", day(kept=2), only=False)

    def test_a_loss_covers_no_other_partition_and_nothing_that_is_kept(self):
        self.finds("unseen", three().loss(3).poll((1, 0), (2, 1)).final())
        self.finds("lost-write", three().loss(3).poll((1, 0), (3, 2)), only=False)
        self.finds("unseen", three().send((1, 0), partition=1).loss(0).final())

    def test_a_loss_covers_nothing_that_began_behind_it(self):
        self.finds("unseen", three().poll((1, 0), (2, 1)).loss(2).send((4, 2)).final())
        self.finds("nonmonotonic-poll", three().loss(1).poll((1, 0)).send((4, 1)).poll((4, 1)).poll((1, 0)))

    def test_what_was_under_way_during_a_loss_may_be_from_before_or_after_it(self):
        story = three()
        began = story.clock
        sent, polled = story.begin("w", "send", [["send", T, 0, None, 4]]), story.begin("r", "poll", None)
        story.loss(1, began=began)
        story.end(sent, "ok", [["send", T, 0, 1, 4]])
        story.end(polled, "ok", [["poll", T, 0, 2, 3], ["poll", T, 0, 0, 1]])
        self.passes(story.poll((1, 0), (4, 1)).final())

    def test_committed_offsets_go_back_only_with_the_log_that_holds_them(self):
        self.finds("committed-offset-went-back", Story().commit(5).loss(0).committed(None))
        self.passes(Story().commit(5).committed(5).loss(0, topic="__consumer_offsets").committed(None))
        self.finds("committed-offset-went-back", Story().loss(0, topic="__consumer_offsets").commit(5).committed(3), only=False)

    def test_an_operation_without_a_completion_is_unknown(self):
        story = Story()
        story.begin("w", "send", [["send", T, 0, None, 1]])
        self.passes(story.final())
        self.passes(story.poll((1, 0)))

    def test_a_value_sent_twice_is_the_workloads_fault(self):
        with self.assertRaises(ValueError):
            Story().send((1, 0)).send((1, 1)).names()

    def test_a_long_history_with_one_record_lost_in_the_middle(self):
        chance = random.Random(7)
        story, partitions = Story(), 5
        offsets = [0] * partitions
        for value in range(5_000):
            p = chance.randrange(partitions)
            story.send((value, offsets[p]), partition=p)
            offsets[p] += 1
        logs = {}
        for e in story.events:
            for _, _, p, o, v in e["value"] if e["type"] == "ok" else ():
                logs.setdefault(p, []).append((v, o))
        lost = logs[3].pop(100)
        for p, pairs in logs.items():
            story.poll(*pairs, partition=p)
        bad = checker.check(story.final().events).bad
        self.assertEqual({"lost-write", "unseen", "int-poll-skip"}, set(bad))
        self.assertEqual([lost[0]], [found["value"] for found in bad["lost-write"]])


if __name__ == "__main__":
    unittest.main()
