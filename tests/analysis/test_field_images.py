"""Images of a receptive field come in many forms, are read one by one, and refused in one sentence."""

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from workbench.analysis.field_images import Pictures, size_of
from workbench.analysis.image_folder import ImageFolder, sample_crops
from workbench.analysis.receptive_field import receptive_field
from workbench.images import load_image

SIZE = (12, 20)


@pytest.fixture
def folder(tmp_path):
    """Two pictures and a file that is none."""
    for name, grey in (("a.png", 40), ("c.png", 200)):
        Pillow.new("RGB", (30, 40), (grey, grey, grey)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no picture")
    return tmp_path


@pytest.fixture
def net():
    return torch.nn.Conv2d(3, 2, 4, 4)


def digests(images, size=SIZE):
    return [picture.sha256 for picture in Pictures(images, size)]


def test_one_image_may_be_given_in_any_form(folder):
    image = load_image(folder / "a.png", SIZE)
    content = (folder / "a.png").read_bytes()
    for one in (image, folder / "a.png", str(folder / "a.png"), content, image.rgb, [image], iter([image])):
        (picture,) = Pictures(one, SIZE)
        assert torch.equal(picture.tensor, image.tensor)
        assert picture.sha256 == image.sha256
    assert digests("coffee") == [load_image("coffee", SIZE).sha256]


def test_a_tensor_is_several_images_and_may_stand_in_a_list():
    batch = torch.randn(3, 3, *SIZE)
    pictures = list(Pictures([batch, load_image("brick", SIZE)], SIZE))
    assert [picture.name for picture in pictures] == ["tensor 0", "tensor 1", "tensor 2", "brick"]
    assert torch.equal(torch.cat([picture.tensor for picture in pictures[:3]]), batch)
    assert len({picture.sha256 for picture in pictures}) == 4
    assert digests(batch) == digests(list(batch[:, None]))
    assert digests(batch) != digests(batch.flip(0))


def test_how_many_there_are_is_known_where_it_can_be(folder):
    batch = torch.randn(3, 3, *SIZE)
    known = [
        ("coffee", 1),
        (["coffee", batch], 4),
        (batch, 3),
        (folder, 3),
        (sample_crops(5, SIZE), 5),
        (iter(()), None),
    ]
    for images, count in known:
        assert Pictures(images, SIZE).planned == count


def test_a_folder_is_read_lazily_and_tells_what_it_could_not_read(folder, net):
    for images in (folder, str(folder), ImageFolder(folder, SIZE)):
        result = receptive_field(net, images, size=SIZE, batch=1)
        assert (int(result["count"]), result.attrs["images"], result.attrs["complete"]) == (2, 2, True)
        ((name, sentence),) = result.attrs["bad"]
        assert name == "b.png"
        assert "not an image" in sentence
    assert receptive_field(net, ImageFolder(folder, SIZE)).attrs["spec"]["size"] == SIZE
    for name in ("a.png", "c.png"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"None of the 1 files could be read. The first: .*b\.png"):
        receptive_field(net, folder, size=SIZE)


def test_tensors_have_as_many_colours_as_the_model_takes():
    grey = torch.nn.Conv2d(1, 2, 4, 4)
    batch = torch.randn(2, 1, *SIZE)
    for images, options in ((batch, {}), ([batch], {}), (iter([batch]), {"colours": 1, "size": SIZE})):
        result = receptive_field(grey, images, dtype="float64", channels="channel 0", gradient="abs", **options)
        assert result.attrs["spec"]["colours"] == 1
        assert int(result["count"]) == 2
        kernel = grey.weight[0, 0].abs().double().detach().numpy()
        assert result["map"].values[4:8, 8:12] == pytest.approx(kernel / kernel.sum(), rel=1e-12)
        assert result["map"].values.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match=r"'coffee' has 3 colours, .* of 1: give a float tensor \(N, 1, H, W\)"):
        receptive_field(grey, "coffee", size=SIZE, colours=1)
    with pytest.raises(ValueError, match="colours is a whole number of a picture, at least 1; got 0"):
        receptive_field(grey, batch, colours=0)


def test_nothing_is_read_before_it_is_needed():
    read = []

    def images():
        for n in range(9):
            read.append(n)
            yield torch.zeros(1, 3, *SIZE)

    pictures = iter(Pictures(images(), SIZE))
    next(pictures)
    assert read == [0]


def test_the_size_is_that_of_the_images_where_they_have_one(folder, net):
    image = load_image("coffee", SIZE)
    for images in (image, [image], torch.zeros(2, 3, *SIZE), [torch.zeros(1, 3, *SIZE)], ImageFolder(folder, SIZE)):
        assert size_of(images) == SIZE
    for images in ("coffee", ["coffee"], image.rgb, iter([image]), [], ImageFolder(folder, None), b"", 3):
        assert size_of(images) is None
    assert size_of(ImageFolder(folder, 16)) == (16, 16)
    assert receptive_field(net, image)["map"].shape == SIZE
    assert receptive_field(net, image.rgb, size=8)["map"].shape == (8, 8)


def test_what_is_no_image_is_refused_in_one_sentence(net):
    image = load_image("coffee", SIZE)
    refused = [
        (image, {"size": 16}, ValueError, "Image 'coffee' has 12 x 20 pixels, .* of 16 x 16: load it at that size"),
        ([image, torch.zeros(1, 3, 8, 8)], {}, ValueError, "Image 0 of the tensor has 8 x 8 pixels"),
        (torch.zeros(3, *SIZE), {"size": SIZE}, ValueError, r"A tensor of images is \(N, 3, H, W\)"),
        (torch.zeros(1, 4, *SIZE), {}, ValueError, r"Conv2d does not run on a picture \(1, 4, 12, 20\): .*channels"),
        (torch.zeros(1, 4, *SIZE), {"colours": 3}, ValueError, r"A tensor of images is \(N, 3, H, W\)"),
        (torch.zeros(1, 3, *SIZE).byte(), {}, ValueError, "of floats; got .* of torch.uint8"),
        ("cofee", {}, ValueError, "no image named 'cofee'; did you mean coffee"),
        ("", {}, ValueError, "no image named ''"),  # and not a folder, the current one
        ("long" * 999, {}, ValueError, "no image named 'longlong"),
        (["coffee", "cofee"], {}, ValueError, "no image named 'cofee'"),
        (np.zeros((4, 4)), {}, ValueError, r"has shape \(H, W, 3\)"),
        ([], {}, ValueError, "There are no images to average over"),
        (torch.zeros(0, 3, *SIZE), {}, ValueError, "There are no images"),
        (7, {}, TypeError, "Images are given as an Image, a name, .* got int"),
        ([7], {}, TypeError, "An image is given as a name"),
        (None, {}, TypeError, "got NoneType"),
    ]
    for images, options, error, sentence in refused:
        with pytest.raises(error, match=sentence):
            receptive_field(net, images, **options)


def test_the_chain_of_hashes_follows_the_order(net):
    chains = {
        receptive_field(net, images, size=SIZE).attrs["images_sha256"]
        for images in (["coffee", "brick"], ["brick", "coffee"], ["coffee"], ["coffee", "coffee"])
    }
    assert len(chains) == 4
    assert {len(chain) for chain in chains} == {64}
