"""Answers as bytes, read back by the libraries that others would use."""

import csv
import io
import json
import math

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ntkpipe.configs.errors import ConfigError
from ntkpipe.pipeline.query.formats import MEDIA_TYPES, Answer, encode, format_of

DTYPES = st.sampled_from([np.float32, np.float64, np.int64])
TABLES = DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=1, max_dims=2, max_side=4)))
HOSTILE = ["=1+1", 'a"b,c\n', "<script>", "\x1b[31m", "sample", "", "ünï"]


def answer(values):
    columns = [f"column {i}" for i in range(values.shape[1])] if values.ndim == 2 else None
    return Answer(values, [HOSTILE[i % len(HOSTILE)] for i in range(len(values))], columns)


def read_arrow(data):
    return pyarrow.ipc.open_stream(data).read_all()


def read_parquet(data):
    return pyarrow.parquet.read_table(io.BytesIO(data))


@settings(deadline=None)
@given(TABLES)
def test_every_format_gives_back_the_same_numbers_and_ids(values):
    found = answer(values)
    assert np.array_equal(np.load(io.BytesIO(encode(found, "npy"))), values, equal_nan=True)
    rows = values[:, None] if values.ndim == 1 else values
    for table in (read_arrow(encode(found, "arrow")), read_parquet(encode(found, "parquet"))):
        assert table.column(0).to_pylist() == found.row_ids
        assert table.column_names == ["sample", *(found.column_ids or ["0"])]
        for number, column in enumerate(rows.T, start=1):
            back = table.column(number).to_numpy()
            assert (back.dtype, np.array_equal(back, column, equal_nan=True)) == (values.dtype, True)
    lines = list(csv.reader(io.StringIO(encode(found, "csv").decode())))
    assert [line[0] for line in lines[1:]] == found.row_ids
    for line, row in zip(lines[1:], rows, strict=True):
        assert np.array_equal(np.array(line[1:], values.dtype), row, equal_nan=True)
    document = json.loads(encode(found, "json"))
    assert (document["dtype"], tuple(document["shape"])) == (values.dtype.name, values.shape)
    assert (document["row_ids"], document.get("column_ids")) == (found.row_ids, found.column_ids)
    back = np.array(document["values"], dtype=float).reshape(values.shape)
    assert np.array_equal(back, np.where(np.isfinite(values), values, np.nan).astype(float), equal_nan=True)


def test_json_has_null_for_what_is_not_finite():
    document = json.loads(encode(Answer(np.array([math.nan, math.inf, -math.inf, 1.5]), list("abcd")), "json"))
    assert document["values"] == [None, None, None, 1.5]


def test_three_axes_fit_arrays_and_json_only():
    found = Answer(np.arange(8.0).reshape(2, 2, 2), ["a", "b"])
    assert np.load(io.BytesIO(encode(found, "npy"))).shape == (2, 2, 2)
    assert json.loads(encode(found, "json"))["values"][1][0] == [4.0, 5.0]
    for form in ("csv", "arrow", "parquet"):
        with pytest.raises(ConfigError, match=f"3 axes, which {form} cannot show"):
            encode(found, form)
    with pytest.raises(ConfigError, match="3 axes, which a data frame cannot show"):
        found.to_dataframe()


def test_parquet_is_refused_for_columns_of_one_name_which_nobody_could_read():
    found = Answer(np.eye(2), ["a", "b"], ["sample", "x"])
    with pytest.raises(ConfigError, match="2 columns are named 'sample'"):
        encode(found, "parquet")
    assert read_arrow(encode(found, "arrow")).column_names == ["sample", "sample", "x"]


def test_names_among_values_fit_tables_but_no_plain_array():
    found = Answer([["x2", 38.0], ["x0", 30.0]], ["x1", "x1"], ["neighbor", "kernel"])
    with pytest.raises(ConfigError, match="holds names as well as numbers"):
        encode(found, "npy")
    table = read_parquet(encode(found, "parquet"))
    assert table.to_pylist()[0] == {"sample": "x1", "neighbor": "x2", "kernel": 38.0}
    assert found.to_dataframe()["kernel"].tolist() == [38.0, 30.0]
    assert json.loads(encode(found, "json"))["values"] == [["x2", 38.0], ["x0", 30.0]]


@pytest.mark.parametrize("values", [np.empty((0, 3)), np.empty(0), []])
def test_an_answer_without_rows_has_its_columns(values):
    found = Answer(values, [], ["a", "b", "c"] if np.ndim(values) == 2 or isinstance(values, list) else None)
    names = found.column_ids or ["0"]
    assert read_arrow(encode(found, "arrow")).column_names == ["sample", *names]
    assert found.to_arrow().num_rows == 0
    assert encode(found, "csv").decode().splitlines()[0].startswith("sample")
    assert json.loads(encode(found, "json"))["values"] == []


def test_what_a_row_is_names_its_column():
    found = Answer(np.arange(2.0), ["0", "1"], row_kind="row")
    assert found.to_arrow().column_names == ["row", "0"]
    assert found.to_dataframe().index.name == "row"
    assert encode(found, "csv").decode() == "row,0\n0,0.0\n1,1.0\n"


def test_formats_are_known_by_the_endings_of_files():
    assert [format_of(f".{form}") for form in MEDIA_TYPES] == list(MEDIA_TYPES)
    for ending in (".xls", "", "npy", ".NPY"):
        with pytest.raises(ConfigError, match=r"known are \.npy, \.csv, \.json, \.arrow, \.parquet"):
            format_of(ending)
