"""The commands read taxonomies in every form."""

import pytest

from hcal_hf import DataArguments, read_taxonomy
from hcal_hf.commands.run_data import read_or_build_taxonomy
from tests.data.test_taxonomy_reader import GOOGLE


@pytest.fixture
def google(tmp_path):
    path = tmp_path / "google.txt"
    path.write_text(GOOGLE, encoding="utf-8")
    return path


def test_a_run_reads_a_taxonomy_in_any_form(google):
    assert read_or_build_taxonomy(None, DataArguments(taxonomy=str(google))) == read_taxonomy(google)
    for options in ('{"label_by": "id"}', {"label_by": "id"}):
        taxonomy = read_or_build_taxonomy(None, DataArguments(taxonomy=str(google), taxonomy_options=options))
        assert taxonomy.labels == ("1", "166", "3237", "2", "3")
    with pytest.raises(ValueError, match=r'taxonomy_options must be an object such as \{"label_by": "id"\}'):
        DataArguments(taxonomy_options="3")
