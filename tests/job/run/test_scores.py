"""What probabilities are worth against labels."""

import numpy as np
import pytest

from job.run.scores import score, worst_mistakes

LABELS = np.array([0, 0, 1, 2])
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1], [0.5, 0.45, 0.05]], np.float32)


def test_counts_by_true_row_and_predicted_column():
    scores = score(LABELS, PROBABILITIES)
    assert scores.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert scores.support.tolist() == [2, 1, 1]
    assert scores.accuracy == 0.5
    assert scores.standard_error == 0.25


def test_precision_recall_and_f1_by_hand():
    scores = score(LABELS, PROBABILITIES)
    np.testing.assert_allclose(scores.precision, [1 / 2, 1 / 2, np.nan])
    np.testing.assert_allclose(scores.recall, [1 / 2, 1, 0])
    np.testing.assert_allclose(scores.f1, [1 / 2, 2 / 3, 0])


def test_loss_is_the_mean_cross_entropy_clipped_as_keras_does():
    assert score(LABELS, PROBABILITIES).loss == pytest.approx(-np.log([0.7, 0.1, 0.6, 0.05]).mean(), rel=1e-6)
    assert score(np.array([1]), np.array([[1.0, 0.0]])).loss == pytest.approx(-np.log(1e-7))


def test_probabilities_that_are_no_numbers_count_as_wrong_and_in_no_class():
    broken = PROBABILITIES.copy()
    broken[0] = np.nan
    scores = score(LABELS, broken)
    assert scores.not_finite == 1
    assert scores.accuracy == 0.25
    assert scores.confusion.sum() == 3
    assert np.isnan(scores.loss)
    assert 0 not in worst_mistakes(LABELS, broken, 10)


def test_worst_mistakes_come_in_order_of_loss_and_hold_no_right_answer():
    assert worst_mistakes(LABELS, PROBABILITIES, 10).tolist() == [3, 1]
    assert worst_mistakes(LABELS, PROBABILITIES, 1).tolist() == [3]
    tied = np.array([[0.0, 0.6, 0.4], [0.0, 0.9, 0.1]])
    assert worst_mistakes(np.array([0, 0]), tied, 2).tolist() == [1, 0]


@pytest.mark.parametrize("labels", [np.array([0, 1]), np.array([0, 0, 1, 3]), np.array([], int)])
def test_arrays_that_do_not_fit_are_refused(labels):
    with pytest.raises(ValueError, match="received"):
        score(labels, PROBABILITIES)
