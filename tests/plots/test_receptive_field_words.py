"""What the figures of receptive fields say: names that tell results apart, what they share, and their numbers."""

import numpy as np

from workbench.plots.receptive_field_words import names, numbers, paper_caption, shared_facts


def test_names_say_what_differs_and_shared_facts_the_rest(speckled, field_of):
    map_ = speckled((8, 8)) + 1
    random, trained = field_of(map_), field_of(map_, weights="trained", seed=None)
    assert names([random]) == ["toy"]
    assert names([random, trained]) == ["toy, random weights, seed 3", "toy, weights trained"]
    assert names([random, field_of(map_, model="other")]) == ["toy", "other"]
    assert names([random, random]) == ["toy [1]", "toy [2]"]
    shared = shared_facts([random, trained])
    assert "stage1.block2" in shared
    assert not any("weights" in fact for fact in shared)
    assert all(fact in paper_caption([random, trained], (1e-4, 1)) for fact in shared)


def test_names_hold_the_settings_in_which_a_model_differs_from_itself(field_of):
    map_ = np.ones((8, 8))
    configs = [{"merge": "aligned", "chunk": None}, {"merge": "released", "chunk": None}, {"dim": 3}]
    models = ["toy", "toy", "other"]
    results = [field_of(map_, model=model, config=config) for model, config in zip(models, configs, strict=True)]
    assert names(results) == ["toy(merge=aligned)", "toy(merge=released)", "other"]


def test_the_centres_of_different_grids_are_no_difference(field_of):
    map_ = np.ones((8, 8))
    centres = [field_of(map_, unit=(2, 2), grid=(4, 4)), field_of(map_, unit=(4, 4), grid=(8, 8), model="other")]
    assert names(centres) == ["toy", "other"]
    assert "unit: the centre cell" in shared_facts(centres)
    cells = [field.assign_attrs(spec=field.attrs["spec"] | {"unit_name": "a cell"}) for field in centres]
    assert names(cells)[0] == "toy, unit (2, 2) of 4 x 4 cells"


def test_the_numbers_say_what_is_not_reached_inside_the_picture(blob, field_of):
    result = field_of(blob((40, 40), (34.5, 4.5), (3, 3)), unit=(3, 0))
    found = dict(numbers(result))
    assert np.isnan(result["r"].sel(threshold=0.99))
    assert found["smallest centred square with 99 % of the mass"] == "not reached inside the picture"
    share = 100 * float(result["r"].sel(threshold=0.5))
    assert found["smallest centred square with 50 % of the mass"] == f"{share:.3g} % of the picture"
    assert found["standard deviation along the principal axes"].endswith("pixels")
    assert found["images"] == "mean over 1 image"
