from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgstore.catalog.catalog import Catalog, ContainerRow, ImageRow, ReferenceRow
from imgstore.datastores.memory import MemoryDatastore
from imgstore.errors import InUseError, InvalidError
from imgstore.images import Images, NoSuchImageError, Removed, familiar, names_id
from registry_client.digest import ImageId
from registry_client.reference import Reference

DIGEST = "sha256:" + "d" * 64


@pytest.fixture
def images() -> Iterator[Images]:
    with contextlib.closing(Catalog(None)) as catalog:
        catalog.replace_all([], [], [], [])
        yield Images(MemoryDatastore(), catalog)


def commit(images: Images, number: int, *names: str, parent: str | None = None) -> str:
    """An image with these names; returns its id."""
    config = b'{"os":"linux","architecture":"amd64","number":%d}' % number
    id = str(ImageId.of(config))
    rows = [ReferenceRow(str(Reference.parse(name)), id, None) for name in names]
    images.commit(ImageRow(id, None, b"", config, (), parent), rows)
    return id


def names_on_the_datastore(images: Images) -> list[str]:
    return sorted(images.read_reference(path).name for path in images.reference_paths())


def test_a_name_goes_and_the_image_with_the_last(images: Images) -> None:
    id = commit(images, 1, "app:1", "app:2")
    assert Removed(("docker.io/library/app:1",), (), by_name=True) == images.remove("app:1")
    assert Removed(("docker.io/library/app:2",), (id,), by_name=True) == images.remove("app:2")
    assert (images.ids(), names_on_the_datastore(images)) == ([], [])
    with pytest.raises(NoSuchImageError, match=r"^No such image: app:2$"):
        images.remove("app:2")


def test_the_last_tag_of_a_repository_takes_its_digests_along(images: Images) -> None:
    id = commit(images, 1, "app:1", f"app@{DIGEST}", f"other@{DIGEST}")
    names = ("docker.io/library/app:1", f"docker.io/library/app@{DIGEST}")
    assert Removed(names, (), by_name=True) == images.remove("app:1")
    assert images.remove(f"other@{DIGEST}").image_ids == (id,)


def test_a_digest_goes_alone(images: Images) -> None:
    commit(images, 1, "app:1", f"app@{DIGEST}")
    assert Removed((f"docker.io/library/app@{DIGEST}",), (), by_name=True) == images.remove(f"app:1@{DIGEST}")
    assert names_on_the_datastore(images) == ["docker.io/library/app:1"]


@pytest.mark.parametrize("form", ["{}", "{:.19}", "short"])
def test_by_id_all_names_of_one_repository_go(images: Images, form: str) -> None:
    id = commit(images, 1, "app:1", f"app@{DIGEST}")
    text = id[7:11] if form == "short" else form.format(id)
    removed = images.remove(text)
    assert (removed.image_ids, len(removed.names), removed.by_name) == ((id,), 2, False)


@pytest.mark.parametrize("names", [("app:1", "app:2"), ("app:1", "other:1"), ("app:1", f"other@{DIGEST}")])
def test_by_id_several_names_are_a_conflict(images: Images, names: tuple[str, str]) -> None:
    id = commit(images, 1, *names)
    words = f"^conflict: unable to delete {id[7:19]} .must be forced. - image is referenced in multiple repositories$"
    with pytest.raises(InUseError, match=words):
        images.remove(id)
    assert len(names_on_the_datastore(images)) == 2
    removed = images.remove(id[7:], force=True)
    assert (removed.image_ids, len(removed.names)) == ((id,), 2)


def test_an_image_with_children_stays(images: Images) -> None:
    parent = commit(images, 1, "base:1")
    child = commit(images, 2, "app:1", parent=parent)
    for force in (False, True):
        with pytest.raises(InUseError, match=r"cannot be forced. - image has dependent child images$"):
            images.remove(parent, force=force)
    assert Removed(("docker.io/library/base:1",), (), by_name=True) == images.remove("base:1")
    assert images.find(parent).id == parent
    assert images.remove("app:1").image_ids == (child, parent)


def add_container(images: Images, number: int, image_id: str) -> str:
    """The catalog's word that there is a container of the image; returns its id."""
    id = f"{number:x}" * 64
    images._catalog.put_containers([ContainerRow(id, f"c{number}", "", image_id, None, b"")])
    return id


def test_an_image_with_containers_stays_unless_forced(images: Images) -> None:
    parent = commit(images, 1)
    id = commit(images, 2, "app:1", "app:2", parent=parent)
    container = add_container(images, 3, id)
    assert images.remove("app:2").image_ids == ()
    with pytest.raises(InUseError) as caught:
        images.remove("app:1")
    words = f"container {container[:12]} is using its referenced image {id[7:19]}"
    assert str(caught.value) == f'conflict: unable to remove repository reference "app:1" (must force) - {words}'
    with pytest.raises(InUseError) as caught:
        images.remove(id[7:])
    words = f"image is being used by stopped container {container[:12]}"
    assert str(caught.value) == f"conflict: unable to delete {id[7:19]} (must be forced) - {words}"
    assert images.remove_unused(id, tagged=True) == Removed()
    add_container(images, 4, parent)
    removed = images.remove("app:1", force=True)
    assert (removed.image_ids, removed.by_name) == ((id,), True)  # the parent has a container
    assert images.find(parent).id == parent


def test_parents_go_until_one_is_needed(images: Images) -> None:
    first = commit(images, 1, "keep:1")
    second = commit(images, 2, parent=first)
    third = commit(images, 3, parent=second)
    commit(images, 4, "sibling", parent=second)
    assert images.remove(third).image_ids == (third,)
    assert images.remove("sibling").image_ids[1:] == (second,)
    assert images.find("keep:1").id == first


def test_parents_can_be_kept(images: Images) -> None:
    parent = commit(images, 1)
    child = commit(images, 2, parent=parent)
    assert images.remove(child, keep_parents=True).image_ids == (child,)
    assert images.find(parent).id == parent


def test_the_parent_lasts(images: Images) -> None:
    parent = commit(images, 1)
    child = commit(images, 2, parent=parent)
    commit(images, 2, "again:1")  # the same image, brought once more by a source that knows of no parent
    assert (images.find(child).parent, images.read(child).parent) == (parent, parent)


@pytest.mark.parametrize("tagged", [False, True])
def test_what_is_used_meanwhile_is_not_pruned(images: Images, tagged: bool) -> None:
    parent = commit(images, 1)
    child = commit(images, 2, "app:1", parent=parent)
    assert images.remove_unused(parent, tagged=tagged) == Removed()
    assert images.remove_unused(child, tagged=tagged).image_ids == ((child, parent) if tagged else ())
    assert images.remove_unused("sha256:" + "0" * 64, tagged=tagged) == Removed()


def test_a_name_is_taken_from_another_image(images: Images) -> None:
    first, second = commit(images, 1, "app:1"), commit(images, 2, "app:2")
    images.name(images.find("app:2"), "app:1")
    assert images.find("app:1").id == second
    assert images.remove(first) == Removed((), (first,), by_name=False)
    row = images.read_reference(images.reference_paths()[0])
    assert row.tagged is None or row.tagged.endswith("+00:00")


@pytest.mark.parametrize(
    "name, message",
    [
        ("UPPER", "repository name must be lowercase"),
        (f"app@{DIGEST}", "refusing to create a tag with a digest reference"),
        ("sha256:1", "refusing to create an ambiguous tag using digest algorithm as name"),
    ],
)
def test_what_is_no_name(images: Images, name: str, message: str) -> None:
    commit(images, 1, "app:1")
    with pytest.raises(InvalidError, match=message):
        images.name(images.find("app:1"), name)


@pytest.mark.parametrize(
    "text, shown",
    [
        ("app", "app:latest"),
        ("docker.io/library/app:2", "app:2"),
        ("f00", "f00:latest"),
        ("0" * 64, "sha256:" + "0" * 64),
        ("sha256:" + "0" * 64, "sha256:" + "0" * 64),
        (f"app:1@{DIGEST}", f"app:1@{DIGEST}"),
    ],
)
def test_what_is_not_there(images: Images, text: str, shown: str) -> None:
    with pytest.raises(NoSuchImageError) as caught:
        images.find(text)
    assert str(caught.value) == f"No such image: {shown}"


@pytest.mark.parametrize("text", ["UPPER", "a b", "", "../x", "x" * 300, "☃"])
def test_what_is_no_reference(images: Images, text: str) -> None:
    with pytest.raises(InvalidError):
        images.find(text)


@given(
    st.from_regex(
        r"\A(?:[a-z]{1,3}\.[a-z]{2}(?::[0-9]{2})?/)?(?:library/)?[a-z0-9]{1,4}(?:/[a-z]{1,3})?(?::[a-z0-9]{1,3}|@sha256:0{64})?\Z"
    )
)
def test_familiar_says_what_the_reference_does(text: str) -> None:
    reference = Reference.parse(text)
    assert reference.familiar == familiar(str(reference))


def test_the_start_of_an_id() -> None:
    assert names_id("sha256:dd", DIGEST) and names_id("dd", DIGEST) and names_id(DIGEST, DIGEST)
    assert not names_id("sha", DIGEST) and not names_id("", DIGEST) and not names_id("e", DIGEST)
