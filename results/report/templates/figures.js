// Draws each element with data-figure from the JSON element of that name, in the colours of the page.
function dressed(figure) {
  const style = getComputedStyle(document.documentElement);
  const [color, line] = ["--text", "--line"].map(name => style.getPropertyValue(name).trim());
  const layout = figure.layout;
  layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
  layout.font.color = color;
  layout.modebar = {bgcolor: "rgba(0,0,0,0)"};
  for (const name of Object.keys(layout).filter(name => /^[xy]axis/.test(name))) {
    layout[name].gridcolor = layout[name].zerolinecolor = line;
  }
  return layout;
}

function drawFigures() {
  for (const holder of document.querySelectorAll("[data-figure]")) {
    const figure = JSON.parse(document.getElementById(holder.dataset.figure).textContent);
    Plotly.newPlot(holder, figure.data, dressed(figure), {responsive: true, displaylogo: false});
  }
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const holder of document.querySelectorAll("[data-figure].js-plotly-plot")) {
    Plotly.relayout(holder, dressed({layout: holder.layout}));
  }
});
