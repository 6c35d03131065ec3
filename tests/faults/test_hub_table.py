"""What can go wrong with a Hub, row by row, and the tests that show the outcome of each."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

# What happens -> the tests of it, as FILE: names. Exit 6 where nothing else is said.
ROWS = {
    "401 and 403 name the right that is lacking, never the token": {
        "faults/test_pull.py": ["test_refusal_is_one_line_and_exit_6"],
        "faults/test_push.py": ["test_refusal_anywhere_is_one_line_and_exit_6"],
        "faults/test_network.py": ["test_token_is_in_no_output"],
    },
    "a gated repository is named with the address of its licence": {
        "faults/test_pull.py": ["test_gated_and_private_repositories_need_the_right_token"],
    },
    "a missing repository, revision or file: which one": {
        "faults/test_pull.py": ["test_missing_repository_and_revision_say_which"],
        "faults/test_network.py": ["test_missing_file_is_named"],
    },
    "offline: the cache where it is complete": {
        "faults/test_offline.py": [
            "test_snapshot_in_the_cache_is_pulled",
            "test_files_downloaded_one_by_one_are_pulled",
            "test_adapter_that_lacks_a_file_is_exit_6",
            "test_base_that_lacks_a_shard_is_exit_6",
            "test_what_was_never_downloaded_is_exit_6",
        ],
    },
    "no address, no answer, 5xx and 429 are tried again, as Retry-After says, then retryable": {
        "faults/test_network.py": [
            "test_host_that_has_no_address_is_exit_6_after_a_few_tries",
            "test_port_where_nobody_listens_is_exit_6",
            "test_answer_that_does_not_come_is_asked_for_again",
            "test_rate_limit_is_waited_for_as_long_as_it_asks",
            "test_server_error_is_tried_again_with_growing_waits",
        ],
        "faults/test_pull.py": ["test_rate_limit_that_stays_is_exit_6_and_retryable"],
    },
    "a connection that drops goes on with a range, or begins again; then retryable": {
        "faults/test_pull.py": [
            "test_dropped_connection_goes_on_where_it_broke_off",
            "test_pull_that_broke_off_is_taken_up",
        ],
        "faults/test_network.py": [
            "test_connection_that_never_holds_is_exit_6_and_the_next_run_goes_on",
            "test_server_without_ranges_sends_the_file_from_its_beginning",
            "test_rest_of_another_file_is_not_joined_to_a_beginning",
            "test_beginning_of_another_file_is_downloaded_again",
        ],
    },
    "other bytes of the same size are exit 9 with both digests": {
        "faults/test_network.py": [
            "test_same_size_with_other_bytes_is_taken_by_the_client_and_refused_by_pull"
        ],
        "faults/test_pull.py": ["test_same_size_with_other_bytes_is_exit_9"],
    },
    "a short body": {
        "faults/test_pull.py": ["test_short_body_is_exit_6_and_the_next_run_completes"],
    },
    "a hostile name in the tree is exit 3": {
        "faults/test_pull.py": [
            "test_hostile_name_is_exit_3",
            "test_names_that_differ_in_case_only_are_exit_3",
            "test_link_in_the_tree_is_not_followed",
        ],
    },
    "a repository of pickles only is exit 3, and --allow-pickle helps": {
        "faults/test_pull.py": ["test_repository_of_pickles_only_is_exit_3_and_says_what_helps"],
        "cli/test_flags_hub.py": ["test_pull_allow_pickle"],
    },
    "a branch that moves while it is pulled changes nothing": {
        "faults/test_pull.py": ["test_branch_that_moves_meanwhile_changes_nothing"],
    },
    "--require-pinned and a branch are exit 2": {
        "cli/test_flags_hub.py": ["test_pull_require_pinned"],
    },
    "a huge repository: only what is needed; --max-bytes is exit 7": {
        "faults/test_pull.py": ["test_only_what_is_needed_is_downloaded"],
        "cli/test_flags_hub.py": ["test_pull_dry_run", "test_pull_max_bytes"],
    },
    "a branch that moved before the commit keeps what was pushed meanwhile": {
        "faults/test_push.py": [
            "test_branch_that_moved_is_exit_6_and_kept",
            "test_either_status_of_a_conflict_is_a_branch_that_moved",
        ],
    },
    "a push that is killed leaves the branch alone, and the next sends nothing twice": {
        "faults/test_push_killed.py": [
            "test_push_killed_at_every_request_leaves_the_old_or_the_new",
            "test_push_after_one_that_broke_off_sends_nothing_large_again",
        ],
    },
    "a lost answer to a commit is made up for": {
        "faults/test_push.py": ["test_lost_answer_to_a_commit_is_recognised"],
    },
    "what must not leave is exit 3 before the network": {
        "faults/test_push.py": ["test_what_must_not_leave_is_exit_3_before_the_network"],
    },
    "another host gets no token": {
        "faults/test_network.py": ["test_other_host_gets_no_token"],
    },
    "an output that is there, or a link to one, is exit 5": {
        "faults/test_pull.py": ["test_output_that_is_there_is_exit_5"],
    },
}


@pytest.mark.parametrize("row", ROWS)
def test_row_has_its_tests(row: str) -> None:
    """A test that is renamed or removed takes its row along."""
    root = Path(__file__).resolve().parent.parent
    for file, names in ROWS[row].items():
        tree = ast.parse((root / file).read_text(encoding="utf-8"))
        there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert set(names) <= there
