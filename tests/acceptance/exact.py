"""The checks that have no learning in them: tests of their own, run and counted under their numbers."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from .settings import Check

TESTS = Path(__file__).parents[1]
TRIS = {
    "1, parameters": (
        "test_the_localiser_has_as_many_parameters_as_the_method_page_says",
        "test_tris_segmenter.py::test_the_segmenter_has_as_many_parameters_as_the_method_page_says",
    ),
    "2, cells and texts permuted": (
        "test_permuting_cells_permutes_the_response_and_leaves_the_scores_alone",
        "test_permuting_texts_permutes_the_responses",
    ),
    "3, one text": (
        "test_a_text_alone_prompts_every_cell_with_one_learned_constant",
        "test_an_answer_is_the_same_in_any_batch_and_is_where_the_response_is_positive",
    ),
    "4, area term": (
        "test_the_area_term_rises_from_minus_4_6_to_nothing",
        "test_the_classification_loss_is_the_one_worked_out_by_hand",
    ),
    "5, sampler": (
        "test_negatives_are_captions_of_other_objects_of_the_image",
        "test_no_two_entries_of_a_batch_share_an_image",
    ),
    "6, gradients of calibration": (
        "test_a_mask_that_is_a_candidates_is_known_as_that_candidates",
        "test_calibration_moves_the_masks_and_never_the_teacher",
    ),
    "10, walk and medoid": (
        "test_the_walk_keeps_a_constant_map_and_without_steps_any_map",
        "test_the_caption_that_agrees_with_the_others_is_chosen_in_any_order",
    ),
    "12, stage 2": (
        "test_tris_segmenter.py::test_more_padding_changes_no_mask",
        "test_tris_segmenter.py::test_without_a_positive_logit_the_mask_is_empty",
    ),
    "13, figures, and no truth in training": (
        "test_metrics.py::test_overall_iou_weighs_a_sentence_by_its_pixels",
        "test_metrics.py::test_mask_iou_of_empty_masks",
        "test_evaluation.py::test_where_it_points_is_told_apart_from_what_it_covers",
        "test_tris_runs.py::test_boxes_and_masks_that_are_annotated_change_no_byte_of_training",
    ),
}
SAG = {
    "1, parameters": ("test_the_heads_have_as_many_parameters_as_the_method_page_says",),
    "2, sums": ("test_what_is_shared_out_sums_to_one",),
    "3, symmetry of slots": (
        "test_noise_permuted_inside_a_gaussian_permutes_its_slots_and_changes_nothing_else",
        "test_noise_swapped_between_gaussians_changes_the_shares",
        "test_between_gaussians_self_attention_lets_nothing_pass",
    ),
    "4, gradients that stop": (
        "test_the_compared_text_gets_no_gradient_and_the_asking_one_does",
        "test_the_painted_tokens_are_compared_with_tokens_that_do_not_learn",
    ),
    "11, one answer in any batch": ("test_an_image_has_one_answer_in_any_batch",),
    "12, threshold": ("test_the_threshold_is_one_half_and_no_setting",),
}
"""Check -> its tests, of the method's own file where none is named."""


class _Outcomes:
    """Which tests ran, and whether they passed."""

    def __init__(self) -> None:
        self.passed: dict[str, bool] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2].partition("[")[0]
        if report.when == "call" or report.failed:
            self.passed[name] = report.passed and self.passed.get(name, True)


FILES = {"TRIS-C": ("test_tris.py", TRIS), "SaG-C": ("test_shatter.py", SAG)}
"""Method -> its own file in tests, its checks."""


def tests_of(method: str) -> dict[str, list[str]]:
    """Check -> its tests, each with its file."""
    own, wanted = FILES[method]
    return {check: [name if "::" in name else f"{own}::{name}" for name in names] for check, names in wanted.items()}


def checks(method: str) -> Iterator[Check]:
    """Runs the tests; a check holds if all of its own ran and passed."""
    outcomes = _Outcomes()
    wanted = tests_of(method)
    pytest.main(["-q", "--no-header", "-n", "0", *(str(TESTS / each) for each in chain(*wanted.values()))], [outcomes])
    for check, names in wanted.items():
        right = sum(outcomes.passed.get(name.rpartition("::")[2], False) for name in names)
        yield Check(f"{method} {check}", right, f"{len(names)} tests", right == len(names))
