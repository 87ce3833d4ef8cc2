// What scrolls sideways can be reached by the keyboard, in either renderer; finish_site puts this at the end of every page.
// A box that Quarto folds is opened by the keyboard as well, and says what it is.
addEventListener('load', () => {
  for (const box of document.querySelectorAll('.callout-header[data-bs-toggle]')) {
    box.setAttribute('role', 'button');
    box.tabIndex = 0;
    box.addEventListener('keydown', e => {
      if (e.key !== 'Enter' && e.key !== ' ') return;
      e.preventDefault();
      box.click();
    });
  }
});
addEventListener('load', () => setTimeout(() => {
  const wide = e => e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1;
  const scrolls = e => /auto|scroll/.test(getComputedStyle(e).overflowX + getComputedStyle(e).overflowY);
  for (const d of document.querySelectorAll('article, main.content')) {
    for (const e of d.querySelectorAll('pre, pre > code, div, table, math, p, span.math')) {
      if (e.tabIndex < 0 && wide(e) && scrolls(e)) e.tabIndex = 0;
    }
  }
}, 100));
