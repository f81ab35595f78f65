from kerasgpt.evaluation.plots import load_pyplot, save_figure


def test_a_figure_is_a_png_and_forgotten(tmp_path):
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots()
    axes.plot([1, 2])
    assert save_figure(figure, tmp_path / "a.png") == "a.png"
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not pyplot.fignum_exists(figure.number)
