// Draws the diagrams of a page in its colours. Only pages with a diagram load this, and mermaid.min.js before it.
addEventListener('DOMContentLoaded', () => {
  if (typeof mermaid === 'undefined') return;
  const dark = document.body.dataset.mdColorScheme === 'slate';
  mermaid.initialize({ startOnLoad: false, securityLevel: 'strict', theme: dark ? 'dark' : 'default' });
  mermaid.run({ querySelector: 'pre.diagram' });
});
