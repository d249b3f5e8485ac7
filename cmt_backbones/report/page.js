(() => {
  const figures = JSON.parse(document.getElementById('figures').textContent);
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const config = {responsive: true, displaylogo: false, scrollZoom: false,
    modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d', 'toggleSpikelines']};

  // Fonts and colours of the page, so that a plot is one of its parts, in the dark too.
  function themed(layout) {
    const css = getComputedStyle(document.documentElement);
    const of = name => css.getPropertyValue(name).trim();
    const axis = {gridcolor: of('--grid'), linecolor: of('--line'), zerolinecolor: of('--line')};
    const all = {...layout, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
      font: {family: getComputedStyle(document.body).fontFamily, size: 12.5, color: of('--ink')},
      hoverlabel: {bgcolor: of('--paper'), bordercolor: of('--line'), font: {color: of('--ink')}},
      modebar: {bgcolor: 'rgba(0,0,0,0)', color: of('--soft'), activecolor: of('--accent')},
      xaxis: {...axis, ...layout.xaxis}, yaxis: {...axis, ...layout.yaxis}};
    return all;
  }

  function draw(node) {
    const figure = figures[node.dataset.figure];
    node.dataset.drawn = 'yes';
    const layout = themed(figure.layout);
    for (const trace of figure.data)
      if (trace.type === 'heatmap') trace.textfont = {color: layout.font.color};
    return Plotly.react(node, figure.data, layout, config);
  }

  // Plots are drawn when they come near the window: a page of many opens at once.
  const near = new IntersectionObserver(entries => {
    for (const {isIntersecting, target} of entries)
      if (isIntersecting) { near.unobserve(target); draw(target); }
  }, {rootMargin: '600px'});
  const plots = [...document.querySelectorAll('.plot')];
  plots.forEach(node => near.observe(node));
  dark.addEventListener('change', () => plots.filter(node => node.dataset.drawn).forEach(draw));
  addEventListener('beforeprint', () => plots.filter(node => !node.dataset.drawn && node.offsetParent).forEach(draw));

  // Buttons above a plot choose which of its curves are shown.
  for (const button of document.querySelectorAll('.choices button'))
    button.addEventListener('click', () => {
      for (const other of button.parentNode.children) other.setAttribute('aria-pressed', String(other === button));
      Plotly.restyle(button.closest('.panel').querySelector('.plot'), {visible: JSON.parse(button.dataset.visible)});
    });

  // The tabs of all sections show the same run.
  for (const button of document.querySelectorAll('[role=tab]'))
    button.addEventListener('click', () => {
      for (const other of document.querySelectorAll('[role=tab]'))
        other.setAttribute('aria-selected', String(other.dataset.run === button.dataset.run));
      for (const part of document.querySelectorAll('[data-of]'))
        part.hidden = part.dataset.of !== button.dataset.run;
    });

  const dialog = document.querySelector('dialog');
  for (const figure of document.querySelectorAll('.gallery figure'))
    figure.addEventListener('click', () => { dialog.replaceChildren(figure.cloneNode(true)); dialog.showModal(); });
  dialog.addEventListener('click', () => dialog.close());
})();
