import pytest

from sliceserve.models.chat_template import knows_role, named_template, read_chat_template, reads
from sliceserve.models.errors import ModelError


def test_a_template_is_read_from_a_file_or_is_one(tmp_path):
    file = tmp_path / "a.jinja"
    file.write_text("{{ messages }}")
    assert read_chat_template(str(file)) == "{{ messages }}"
    assert read_chat_template("{% generation %}{% endgeneration %}") != ""


@pytest.mark.parametrize(
    ("given", "reason"),
    [("nowhere.jinja", "nowhere.jinja.*neither Jinja nor a file"), ("{{ a\n b }}", "line 2")],
)
def test_what_is_no_template_is_refused(given, reason):
    with pytest.raises(ModelError, match=reason):
        read_chat_template(given)


def test_what_a_template_knows():
    source = (
        "tools {% set tools_below = 1 %}{% if m.role == 'developer' %}{{ documents }}{% endif %}"
    )
    assert not reads(source, "tools")
    assert reads(source, "documents")
    assert reads("{%- if not tools is defined %}", "tools")
    assert knows_role(source, "developer")
    assert not knows_role(source, "tool")


def test_one_of_several_templates():
    assert named_template(None, True) is None
    assert named_template("one", True) == "one"
    assert named_template({"default": "a", "rag": "b"}, True) == "a"
    with pytest.raises(ModelError, match="named rag, but none named default"):
        named_template({"rag": "b"}, True)
