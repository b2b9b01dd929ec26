"""The sentence for an unknown name: what it repeats, offers and lists."""

from workbench.names import unknown


def test_a_near_match_is_offered_before_what_is_known() -> None:
    sentence = unknown("image", "cofee", ["astronaut", "coffee"])
    assert sentence == "There is no image named 'cofee'; did you mean coffee? Known: astronaut, coffee."


def test_without_a_near_match_only_what_is_known_is_listed() -> None:
    assert unknown("page", "zzz", ["affinity"]) == "There is no page named 'zzz'. Known: affinity."


def test_what_the_names_belong_to_is_said() -> None:
    assert unknown("layer", "zzz", ["a"], of="gspn_tiny").startswith("There is no layer named 'zzz' in gspn_tiny.")


def test_upper_and_lower_case_count_as_equal() -> None:
    assert "did you mean Swin_Tiny?" in unknown("model", "SWIN_TINY", ["gspn_base", "Swin_Tiny"])


def test_several_near_matches_are_joined_by_or() -> None:
    sentence = unknown("model", "swin_tin", ["swin_tiny", "swin_tina"])
    assert "did you mean swin_tina or swin_tiny?" in sentence or "did you mean swin_tiny or swin_tina?" in sentence


def test_eight_names_are_listed_and_the_rest_is_counted() -> None:
    assert unknown("layer", "?", [str(i) for i in range(8)]).endswith("Known: 0, 1, 2, 3, 4, 5, 6, 7.")
    assert unknown("layer", "?", [str(i) for i in range(10)]).endswith("Known: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more.")


def test_an_iterator_of_names_is_as_good_as_a_list() -> None:
    assert unknown("model", "b", iter(["a", "bb"])).endswith("Known: a, bb.")


def test_nothing_known_is_said_so() -> None:
    assert unknown("image", "coffee", []) == "There is no image named 'coffee'; none is known."


def test_a_very_long_name_is_cut() -> None:
    assert len(unknown("image", "x" * 1_000_000, ["coffee"])) < 200
