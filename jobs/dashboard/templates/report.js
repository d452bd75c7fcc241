"use strict";
(() => {
  const root = document.documentElement;
  const config = { displayModeBar: false, displaylogo: false, responsive: true };
  const PRINT_WIDTH_PX = 700; // of A4 between the margins; Letter is a little wider
  const drawn = [];
  document.getElementById("without").remove();

  for (const data of document.querySelectorAll("script[data-for]")) {
    const chart = document.getElementById(data.dataset.for);
    const panel = chart.closest(".panel");
    // A hidden element has no width to draw for.
    const hidden = panel && !panel.classList.contains("shown");
    if (hidden) panel.classList.add("shown");
    const figure = JSON.parse(data.textContent);
    Plotly.newPlot(chart, figure.data, figure.layout, config).catch((error) => {
      chart.textContent = `This chart could not be drawn: ${error.message}`;
      console.error(error);
    });
    if (hidden) panel.classList.remove("shown");
    drawn.push(chart);
  }

  const select = document.getElementById("figure");
  if (select) {
    const show = () => {
      for (const panel of document.querySelectorAll(".panel")) {
        panel.classList.toggle("shown", panel.dataset.panel === select.value);
      }
      Plotly.Plots.resize(document.getElementById(select.value));
    };
    select.addEventListener("change", show);
    show(); // a browser that comes back to the page keeps the choice
  }

  const dark = matchMedia("(prefers-color-scheme: dark)");
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });

  const large = document.getElementById("large");
  for (const button of document.querySelectorAll(".enlarge")) {
    button.addEventListener("click", () => {
      const image = button.querySelector("img");
      large.querySelector("img").src = image.src;
      large.querySelector("img").alt = image.alt;
      large.showModal();
    });
  }
  large.addEventListener("click", () => large.close());

  // On paper everything is shown, at the paper's width.
  const closed = [];
  let printing = false;
  const onPaper = (starts) => {
    if (starts === printing) return;
    printing = starts;
    if (starts) {
      for (const details of document.querySelectorAll("details:not([open])")) {
        details.open = true;
        closed.push(details);
      }
    } else {
      for (const details of closed.splice(0)) details.open = false;
    }
    for (const chart of drawn) {
      if (starts) Plotly.relayout(chart, { width: PRINT_WIDTH_PX });
      else if (chart.offsetParent) Plotly.relayout(chart, { width: null, autosize: true });
      else Plotly.relayout(chart, { width: null });
    }
  };
  addEventListener("beforeprint", () => onPaper(true));
  addEventListener("afterprint", () => onPaper(false));
  matchMedia("print").addEventListener("change", (event) => onPaper(event.matches));
})();
