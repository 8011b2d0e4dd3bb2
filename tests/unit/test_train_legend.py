from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from xgfm.cf import class_flags
from xgfm.errors import LabelError, TaskError
from xgfm.models.spec import ClassInfo
from xgfm.train.labels.legend import Legend, LegendEntry, classes_of, legend_of

CROPS = Legend.of(
    [
        {"code": 10, "name": "Cereals"},
        {"code": 11, "name": "Wheat", "color": "#aa7700", "parent": 10},
        {"code": 12, "name": "Winter wheat", "parent": "Wheat"},
        {"code": 13, "name": "Barley", "parent": "Cereals"},
        {"code": 20, "name": "Lake", "parent": "Water"},
        {"code": 99, "name": ""},
    ]
)


def names(legend: Legend) -> list[str]:
    return [info.name for info in legend.classes]


def test_codes_become_indexes_in_the_order_of_the_table() -> None:
    legend = Legend.of({5: "Corn", 1: "Soybeans", 36: "Alfalfa", 111: None})
    assert names(legend) == ["Corn", "Soybeans", "Alfalfa"]
    assert [legend.index_of(c) for c in (5, 1, 36, 111, "Soybeans", np.uint8(36), 5.0, "36")] == [
        0,
        1,
        2,
        255,
        1,
        2,
        0,
        2,
    ]
    looked_up = legend.lookup(np.array([[1, 111], [36, 5]], "int16"))
    assert looked_up.dtype == "uint8"
    assert looked_up.tolist() == [[1, 255], [2, 0]]


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=60, unique=True), st.data())
def test_lookup_is_index_of_for_each(codes: list[int], data: st.DataObject) -> None:
    legend = Legend.of({code: f"class {code}" for code in codes})
    seen = data.draw(st.lists(st.sampled_from(codes), max_size=30))
    assert legend.lookup(np.array(seen, "int64")).tolist() == [codes.index(c) for c in seen]


def test_tables_of_every_kind_say_the_same(tmp_path) -> None:
    csv, listed, mapped = tmp_path / "crops.csv", tmp_path / "list.yaml", tmp_path / "map.yml"
    csv.write_text("\ufeffcode,name,color,parent\n1, Corn,#FFCC00,Crops\n2,Grass,,\n255,,,\n", encoding="utf-8")
    rows = ["{code: 1, name: Corn, color: '#ffcc00', parent: Crops}", "{code: 2, name: Grass}", "{code: 255, name: ''}"]
    listed.write_text("".join(f"- {row}\n" for row in rows))
    mapped.write_text("1: {name: Corn, color: '#ffcc00', parent: Crops}\n2: Grass\n255: null\n")
    found = [Legend.of(path) for path in (csv, str(listed), mapped)]
    assert found[0] == found[1] == found[2]
    assert found[0].entries[0] == LegendEntry(1, "Corn", "#ffcc00", "Crops")
    assert names(found[0]) == ["Corn", "Grass"]
    assert found[0].index_of(255) == 255


def test_yaml_keeps_the_words_no_and_yes(tmp_path) -> None:
    path = tmp_path / "flood.yaml"
    path.write_text("no: Dry\nyes: Flooded\n")
    assert Legend.of(path).codes == ("no", "yes")


def test_merging_up_the_taxonomy() -> None:
    assert names(CROPS) == ["Cereals", "Wheat", "Winter wheat", "Barley", "Lake"]
    assert names(CROPS.merge(0)) == ["Cereals", "Water"]
    assert names(CROPS.merge(1)) == ["Cereals", "Wheat", "Barley", "Lake"]
    assert names(CROPS.merge(9)) == names(CROPS)
    assert CROPS.merge(0).lookup(np.array([12, 13, 20, 99])).tolist() == [0, 0, 1, 255]
    assert CROPS.merge(1).classes[1].color == "#aa7700"


def test_merging_by_names() -> None:
    merged = CROPS.merge({"Wheat": "Wheats", 13: "Other", "Water": None})
    assert names(merged) == ["Cereals", "Wheats", "Other"]
    assert [merged.index_of(c) for c in (10, 11, 12, 13, 20)] == [0, 1, 1, 2, 255]
    again = merged.merge({"Other": "Wheats"})
    assert [again.index_of(c) for c in (10, 11, 12, 13, 20)] == [0, 1, 1, 1, 255]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(0, 6))
def test_each_level_is_coarser_than_the_next(parents: list[int], level: int) -> None:
    # Entry n hangs under an earlier one, or under none.
    entries = tuple(LegendEntry(n, f"c{n}", parent=None if p >= n else f"c{p}") for n, p in enumerate(parents))
    legend = Legend(entries)
    coarse, fine = legend.merge(level), legend.merge(level + 1)
    pairs = {(fine.index_of(e.code), coarse.index_of(e.code)) for e in entries}
    assert len(pairs) == len(fine.classes)  # every fine class lies in one coarse class
    assert len(coarse.classes) <= len(fine.classes)
    assert len(legend.merge(0).classes) == sum(e.parent is None for e in entries)


def test_colours_are_chosen_where_none_are_given_and_differ() -> None:
    colors = [info.color for info in Legend.of([f"class {n}" for n in range(30)]).classes]
    assert len(set(colors)) == 30


def test_classes_come_back_from_the_flags_of_a_label_array() -> None:
    infos = (ClassInfo("Winter Wheat", "#aa7700"), ClassInfo("Été", "#00ff00"))
    array = xr.DataArray(np.zeros((2, 2), "uint8"), attrs=class_flags(infos), name="label")
    assert classes_of(array) == infos
    assert classes_of(xr.DataArray(np.zeros((2, 2), "float32"))) == ()
    del array.attrs["class_names"]
    assert [c.name for c in classes_of(array)] == ["winter wheat", "ete"]


def test_flags_of_others_may_be_in_any_order() -> None:
    attrs = {"flag_values": np.array([7, 3], "int16"), "flag_meanings": "water bare_soil"}
    array = xr.DataArray(np.zeros((2, 2), "int16"), attrs=attrs, name="cover")
    assert legend_of(array).lookup(np.array([3, 7])).tolist() == [1, 0]
    with pytest.raises(LabelError, match="expected 0 to 1"):
        classes_of(array)
    array.attrs["flag_meanings"] = "water"
    with pytest.raises(LabelError, match="2 flag_values, 1 meanings"):
        legend_of(array)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({}, "is empty"),
        ({1: "Corn", 2: "Corn"}, "name Corn more than once"),
        ([{"code": 1, "name": "a"}, {"code": "1", "name": "b"}], "code 1 more than once"),
        ({1: None}, "leaves no class"),
        ({1: " "}, "give it a text"),
        ({1: {"name": "Corn", "colour": "#ff0000"}}, "has colour; expected code, name, color, parent"),
        ({1: 5}, "code 1 of the legend is 5"),
        (7, "int is no legend"),
        ("crops.xlsx", "give a .csv or .yaml file"),
        ("nowhere.csv", "there is no file"),
    ],
)
def test_what_is_no_legend_is_refused(source, told: str) -> None:
    with pytest.raises(LabelError, match=told):
        Legend.of(source)


def test_colours_that_are_none_are_refused() -> None:
    with pytest.raises(TaskError, match="#rrggbb"):
        Legend.of({1: {"name": "Corn", "color": "yellow"}})


def test_a_table_without_its_columns_is_refused(tmp_path) -> None:
    path = tmp_path / "crops.csv"
    path.write_text("id,name\n1,Corn\n")
    with pytest.raises(LabelError, match="no column code"):
        Legend.of(path)
    broken = tmp_path / "crops.yaml"
    broken.write_text("1: [")
    with pytest.raises(LabelError, match="cannot be read as YAML"):
        Legend.of(broken)


def test_unknown_codes_are_all_named_with_what_may_be_meant() -> None:
    legend = Legend.of({"WW": "Winter wheat", "CO": "Corn"})
    with pytest.raises(LabelError, match=r"hold 'SB', 'corn', .*did you mean 'Corn'\?.*'WW': Winter wheat"):
        legend.lookup(np.array(["WW", "SB", "corn", "CO"], object))
    with pytest.raises(LabelError, match="no code or class 3"):
        legend.index_of(3)


def test_a_circle_of_parents_is_refused() -> None:
    legend = Legend.of([{"code": 1, "name": "a", "parent": 2}, {"code": 2, "name": "b", "parent": 1}])
    with pytest.raises(LabelError, match="circle: a < b < a"):
        legend.merge(0)


def test_names_that_are_merged_must_exist() -> None:
    with pytest.raises(LabelError, match=r"\['Weat'\].*did you mean 'Wheat'"):
        CROPS.merge({"Weat": "Grain"})
    with pytest.raises(LabelError, match="level is -1"):
        CROPS.merge(-1)


def test_no_more_classes_than_a_byte_holds() -> None:
    many = Legend.of([{"code": n, "name": f"crop {n}", "parent": f"group {n % 9}"} for n in range(256)])
    with pytest.raises(LabelError, match="256 classes; labels hold 255"):
        _ = many.classes
    assert len(many.merge(0).classes) == 9
    assert len(Legend.of([f"crop {n}" for n in range(255)]).classes) == 255


@pytest.mark.parametrize("other", ["corn", "CORN", " Corn", "Corn  "])
def test_names_that_differ_in_case_or_blanks_only_are_refused_and_merged(other: str) -> None:
    legend = Legend.of(["Corn", "Wheat", other])
    with pytest.raises(LabelError, match=r"'Corn' and .* differ in case or blanks only.*merge"):
        _ = legend.classes
    assert names(legend.merge({other: "Corn"})) == ["Corn", "Wheat"]
