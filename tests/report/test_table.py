from vlm_edit.report import Table


def test_columns_line_up_whatever_their_width() -> None:
    table = Table("Title", ("a", "long heading"), (("wide cell here", "1"), ("x", "2")), "A note.")
    lines = str(table).splitlines()
    assert lines[0] == "Title"
    assert lines[1].index("long heading") == lines[3].index("1") == lines[4].index("2")
    assert lines[-1] == "A note."


def test_no_line_ends_in_spaces() -> None:
    table = Table("Title", ("a", "b"), (("x", ""), ("y", "wide")))
    assert all(line == line.rstrip() for line in str(table).splitlines())
